"""Boards with a Xilinx 7 series device, and Vivado that makes their bitstreams."""
