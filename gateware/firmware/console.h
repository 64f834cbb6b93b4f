/* Text on the UART. */
#pragma once
#include <stdint.h>

#define LINE_CHARACTERS 64

void put_character(char character);
void put_text(const char *text);
void put_decimal(uint32_t value);
void put_hexadecimal(uint32_t value);

/* A line typed by a user, without its end, cut at LINE_CHARACTERS - 1; sleeps until it is there. */
void get_line(char *line);
