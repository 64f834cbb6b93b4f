"""Programs that builds run: compilers, Verilator, yosys, nextpnr."""
