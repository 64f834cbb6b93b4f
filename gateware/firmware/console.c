#include "console.h"

#include "registers.h"

#define RECEIVED 2 /* event of the UART */

void put_character(char character)
{
    if (character == '\n')
        put_character('\r');
    while (read_register(UART_TXFULL)) {
    }
    write_register(UART_RXTX, (uint8_t)character);
}

void put_text(const char *text)
{
    while (*text)
        put_character(*text++);
}

void put_decimal(uint32_t value)
{
    char digits[10];
    unsigned count = 0;

    do {
        digits[count++] = '0' + value % 10;
        value /= 10;
    } while (value);
    while (count)
        put_character(digits[--count]);
}

void put_hexadecimal(uint32_t value)
{
    for (int shift = 28; shift >= 0; shift -= 4)
        put_character("0123456789abcdef"[(value >> shift) & 15]);
}

static char get_character(void)
{
    char character;

    while (read_register(UART_RXEMPTY))
        write_register(SYSTEM_SLEEP, 1);
    character = read_register(UART_RXTX);
    write_register(UART_EV_PENDING, RECEIVED);
    return character;
}

void get_line(char *line)
{
    unsigned count = 0;

    for (;;) {
        char character = get_character();

        if (character == '\r' || character == '\n') {
            line[count] = 0;
            put_character('\n');
            return;
        }
        if ((character == '\b' || character == 127) && count) {
            count--;
            put_text("\b \b");
        } else if (character >= ' ' && character < 127 && count < LINE_CHARACTERS - 1) {
            line[count++] = character;
            put_character(character);
        }
    }
}
