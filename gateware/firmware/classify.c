#include "classify.h"

#include "console.h"
#include "registers.h"

#define WORD(image, name) ((image)[IMAGE_##name])
#define CLASS(entry, name) ((entry)[CLASS_##name])
#define NO_ERROR 0
#define JOBS_IN_FLIGHT 2u /* the next picture is fetched while one is computed */
#define POLLS 50000000u /* of a job; the engine's own watchdog is faster */

static float as_float(uint32_t bits)
{
    union {
        uint32_t bits;
        float number;
    } both = {.bits = bits};
    return both.number;
}

static uint32_t crc32(const uint8_t *data, uint32_t count)
{
    uint32_t crc = ~0u;

    while (count--) {
        crc ^= *data++;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}

int is_image(uint32_t address)
{
    const uint32_t *image = (const uint32_t *)address;

    return WORD(image, MAGIC) == IMAGE_MAGIC_VALUE && WORD(image, BYTES) >= IMAGE_HEADER_BYTES &&
           WORD(image, BYTES) <= WORD(image, MEMORY_BYTES) &&
           WORD(image, MEMORY_BYTES) <= MAIN_RAM_BASE + MAIN_RAM_BYTES - address;
}

int check_image(uint32_t address)
{
    const uint32_t *image = (const uint32_t *)address;

    if (!is_image(address)) {
        put_text("there is no image at ");
        put_hexadecimal(address);
        put_text("; `sentei pack` makes one\n");
        return 1;
    }
    if (WORD(image, FINGERPRINT) != read_register(ENGINE_FINGERPRINT)) {
        put_text("the image is for an engine ");
        put_hexadecimal(WORD(image, FINGERPRINT));
        put_text("\n");
        return 1;
    }
    if (WORD(image, CRC) != crc32((const uint8_t *)&WORD(image, BYTES), WORD(image, BYTES) - IMAGE_SEALED)) {
        put_text("the image is damaged: its CRC differs\n");
        return 1;
    }
    return 0;
}

/* Until so many jobs have ended since the engine's reset. 0: they ended well. */
static int wait_for(uint32_t jobs)
{
    for (uint32_t poll = 0; poll < POLLS; poll++) {
        uint32_t error = read_register(ENGINE_STATUS) >> STATUS_ERROR_SHIFT & STATUS_ERROR_MASK;

        if (read_register(ENGINE_COMPLETED) >= jobs)
            return 0;
        if (error != NO_ERROR) {
            put_text("the engine stopped with error ");
            put_decimal(error);
            put_text(" at instruction ");
            put_decimal(read_register(ENGINE_INSTRUCTION_POINTER));
            put_text("\n");
            return 1;
        }
    }
    put_text("the engine does not end\n");
    return 1;
}

static float logit(const uint32_t *image, const uint32_t *entry, const uint8_t *output)
{
    uint32_t code = 0, shift = WORD(image, SIGN_SHIFT);
    int32_t value;

    for (uint32_t plane = 0; plane < WORD(image, PLANES); plane++) {
        uint32_t nibble = CLASS(entry, NIBBLE) + plane * WORD(image, PLANE_NIBBLES);
        code |= (uint32_t)(output[nibble / 2] >> nibble % 2 * 4 & 15) << 4 * plane;
    }
    value = (int32_t)(code - WORD(image, BIAS));
    value = (int32_t)((uint32_t)value << shift) >> shift;
    value -= (int32_t)CLASS(entry, CORRECTION);
    return (float)value * as_float(CLASS(entry, SCALE)) + as_float(CLASS(entry, OFFSET));
}

static uint32_t label_of(const uint32_t *image, const uint32_t *table, const uint8_t *output)
{
    uint32_t label = 0;
    float largest = 0;

    for (uint32_t number = 0; number < WORD(image, CLASSES); number++) {
        float own = logit(image, table + number * CLASS_WORDS, output);

        if (number == 0 || own > largest) {
            largest = own;
            label = number;
        }
    }
    return label;
}

static void say_label(uint32_t address, uint32_t picture)
{
    const uint32_t *image = (const uint32_t *)address;
    const uint32_t *table = (const uint32_t *)(address + WORD(image, CLASS_TABLE));
    const uint32_t *cycles = (const uint32_t *)(address + WORD(image, CYCLES));
    const char *name = (const char *)(address + WORD(image, NAMES));
    const uint8_t *output = (const uint8_t *)(address + WORD(image, OUTPUTS) + picture * WORD(image, OUTPUT_BYTES));

    for (uint32_t skipped = label_of(image, table, output); skipped; skipped--)
        while (*name++) {
        }
    put_text("picture ");
    put_decimal(picture);
    put_text(": ");
    put_text(name);
    put_text(", ");
    put_decimal(cycles[picture]);
    put_text(" cycles\n");
}

int run_image(uint32_t address)
{
    const uint32_t *image = (const uint32_t *)address;
    uint32_t *cycles = (uint32_t *)(address + WORD(image, CYCLES));
    uint32_t started = 0, ended = 0;
    int failed;

    write_register(ENGINE_CONTROL, CONTROL_RESET);
    write_register(ENGINE_CONTROL, 0);
    write_register(ENGINE_PROGRAM_BASE, address + WORD(image, PROGRAM));
    write_register(ENGINE_PROGRAM_WORDS, WORD(image, PROGRAM_WORDS));
    write_register(ENGINE_DOORBELL, WORD(image, PROLOGUE) | DOORBELL_LOAD);
    failed = wait_for(1);
    while (!failed && ended < WORD(image, PICTURES)) {
        for (; started < WORD(image, PICTURES) && started < ended + JOBS_IN_FLIGHT; started++) {
            write_register(ENGINE_INPUT_BASE,
                           address + WORD(image, PICTURE_TABLE) + started * WORD(image, PICTURE_BYTES));
            write_register(ENGINE_OUTPUT_BASE, address + WORD(image, OUTPUTS) + started * WORD(image, OUTPUT_BYTES));
            write_register(ENGINE_DOORBELL, WORD(image, BODY));
        }
        failed = wait_for(1 + ended + 1);
        if (!failed)
            cycles[ended++] = read_register(ENGINE_JOB_CYCLES);
    }
    for (uint32_t picture = 0; picture < ended; picture++)
        say_label(address, picture);
    return failed;
}
