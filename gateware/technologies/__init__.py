"""What the datapath is made of: the cells of each vendor, of plain Verilog, and of simulators."""
