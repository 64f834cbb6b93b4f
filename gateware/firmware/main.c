/* Firmware of the soft CPU: a command loop on the UART, for a user with nothing but a terminal.
 *
 * sentei.h is generated from the overlay's tables.
 */
#include "classify.h"
#include "console.h"
#include "registers.h"
#ifdef DRAM
#include <liblitedram/sdram.h>
#endif

#define TESTED_WORDS 1024u
#define BLOCK_WORDS 64u

#define NOT_TESTED ~0u

static void put_memory(uint32_t wrong)
{
    put_text("main memory: ");
    put_decimal(MAIN_RAM_BYTES >> 20);
    put_text(" MiB, ");
    if (wrong == NOT_TESTED) {
        put_text("not tested\n");
        return;
    }
    put_decimal(wrong);
    put_text(" of ");
    put_decimal(TESTED_WORDS);
    put_text(" tested words wrong\n");
}

static void put_banner(void)
{
    uint32_t fingerprint = read_register(ENGINE_FINGERPRINT);
    uint32_t geometry = read_register(ENGINE_GEOMETRY);

    put_text("Sentei " VERSION ", engine ");
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

static uint32_t next_value(uint32_t value)
{
    return value << 1 ^ (value >> 31 ? 0xc5u : 0);
}

/* Write and read the last words of main memory, which keep what they hold. Returns how many were wrong. */
static uint32_t test_memory(void)
{
    volatile uint32_t *memory = (volatile uint32_t *)(MAIN_RAM_BASE + MAIN_RAM_BYTES) - TESTED_WORDS;
    uint32_t kept[BLOCK_WORDS], wrong = 0, written = 1, expected = 1;

    for (uint32_t block = 0; block < TESTED_WORDS; block += BLOCK_WORDS, memory += BLOCK_WORDS) {
        for (uint32_t index = 0; index < BLOCK_WORDS; index++)
            kept[index] = memory[index];
        for (uint32_t index = 0; index < BLOCK_WORDS; index++, written = next_value(written))
            memory[index] = written;
        for (uint32_t index = 0; index < BLOCK_WORDS; index++, expected = next_value(expected))
            wrong += memory[index] != expected;
        for (uint32_t index = 0; index < BLOCK_WORDS; index++)
            memory[index] = kept[index];
    }
    return wrong;
}

static int same(const char *one, const char *other)
{
    while (*one && *one == *other) {
        one++;
        other++;
    }
    return *one == *other;
}

int main(void)
{
    char line[LINE_CHARACTERS];
    uint32_t wrong = NOT_TESTED;

#ifdef DRAM
    sdram_init(); /* what it returns says nothing without its own test */
    wrong = test_memory();
#endif
    put_banner();
    put_memory(wrong);
    /* Last, so that a host who waits for it is not talked to afterwards. */
    write_register(SYSTEM_MEMORY, wrong && wrong != NOT_TESTED ? MEMORY_FAILED : MEMORY_READY);
    for (;;) {
        put_text("> ");
        get_line(line);
        if (same(line, "info")) {
            put_banner();
            put_memory(wrong);
        } else if (same(line, "run")) {
            if (!check_image(MAIN_RAM_BASE))
                run_image(MAIN_RAM_BASE);
        } else if (same(line, "selftest")) {
            int failed = (wrong = test_memory()) != 0;

            put_memory(wrong);
            if (is_image(MAIN_RAM_BASE))
                failed |= check_image(MAIN_RAM_BASE);
            put_text(failed ? "selftest failed\n" : "selftest passed\n");
        } else if (line[0]) {
            put_text("info      which engine this is\n"
                     "run       classify the pictures that lie in main memory with the program beside them\n"
                     "selftest  test main memory and what lies there\n");
        }
    }
}
