/* Accesses to the SoC's registers; sentei.h, generated from the overlay's tables, has their addresses. */
#pragma once
#include <stdint.h>

#include "sentei.h"

static inline uint32_t read_register(uint32_t address)
{
    return *(volatile uint32_t *)address;
}

static inline void write_register(uint32_t address, uint32_t value)
{
    *(volatile uint32_t *)address = value;
}
