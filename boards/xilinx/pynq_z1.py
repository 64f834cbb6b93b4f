"""PYNQ-Z1: a Zynq-7020 with 512 MiB of DDR3."""

from litex_boards.platforms import digilent_pynq_z1

from sentei.boards.xilinx.zynq import zynq_board

BOARD = zynq_board("pynq_z1", digilent_pynq_z1.Platform)
