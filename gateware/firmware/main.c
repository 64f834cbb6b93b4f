/* Firmware of the soft CPU: says on the UART which engine it stands beside, then sleeps.
 *
 * Every byte received makes it say so again. sentei.h is generated from the overlay's tables.
 */
#include <stdint.h>

#include "sentei.h"

static uint32_t read_register(uint32_t address)
{
    return *(volatile uint32_t *)address;
}

static void write_register(uint32_t address, uint32_t value)
{
    *(volatile uint32_t *)address = value;
}

static void put_character(char character)
{
    while (read_register(UART_TXFULL)) {
    }
    write_register(UART_RXTX, (uint8_t)character);
}

static void put_text(const char *text)
{
    while (*text)
        put_character(*text++);
}

static void put_hexadecimal(uint32_t value)
{
    for (int shift = 28; shift >= 0; shift -= 4)
        put_character("0123456789abcdef"[(value >> shift) & 15]);
}

static void put_decimal(uint32_t value)
{
    static const uint32_t powers[] = {100, 10, 1};
    int started = 0;

    for (unsigned i = 0; i < 3; i++) {
        char digit = '0';
        while (value >= powers[i]) {
            value -= powers[i];
            digit++;
        }
        started |= digit != '0' || powers[i] == 1;
        if (started)
            put_character(digit);
    }
}

static void put_banner(void)
{
    uint32_t fingerprint = read_register(ENGINE_FINGERPRINT);
    uint32_t geometry = read_register(ENGINE_GEOMETRY);

    put_text("Sentei ");
    put_hexadecimal(fingerprint);
    put_text(": ");
    put_decimal(geometry & 0xff);
    put_text(" lanes x ");
    put_decimal((geometry >> 8) & 0xff);
    put_text(" columns, ");
    put_decimal((geometry >> 16) & 0xff);
    put_text(" groups\n");
    if (fingerprint != EXPECTED_FINGERPRINT) {
        put_text("this firmware was built for ");
        put_hexadecimal(EXPECTED_FINGERPRINT);
        put_text("\n");
    }
}

int main(void)
{
    for (;;) {
        put_banner();
        write_register(POWER_SLEEP, 1);
        while (read_register(UART_RXEMPTY))
            write_register(POWER_SLEEP, 1);
        while (!read_register(UART_RXEMPTY)) {
            (void)read_register(UART_RXTX);
            write_register(UART_EV_PENDING, 2);
        }
    }
}
