/* Runs a memory image (overlay/image.py): a program on pictures that lie beside it. */
#pragma once
#include <stdint.h>

/* Whether there is what looks like an image at `address`. */
int is_image(uint32_t address);

/* Say what is wrong with the image at `address`, or nothing. 0: it can be run. */
int check_image(uint32_t address);

/* Run all pictures, then print the label and the cycles of each. 0: all were run. */
int run_image(uint32_t address);
