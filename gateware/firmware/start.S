# Entry after reset, at address 0 of the ROM. There is no initialised data; .bss is cleared, then main runs.

    .section .start, "ax"
    .global _start
_start:
    la sp, _stack_top
    la t0, _bss_start
    la t1, _bss_end
clear:
    bgeu t0, t1, run
    sw zero, 0(t0)
    addi t0, t0, 4
    j clear
run:
    call main
halt:
    j halt
