/* For liblitedram: the CPU has no data cache, and there is no cache between it and the DRAM. */
#pragma once
static inline void flush_cpu_dcache(void)
{
}

static inline void flush_l2_cache(void)
{
}
