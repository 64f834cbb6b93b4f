"""PYNQ-Z2: a Zynq-7020 with 512 MiB of DDR3."""

from litex_boards.platforms import tul_pynq_z2

from sentei.boards.xilinx.zynq import zynq_board

BOARD = zynq_board("pynq_z2", tul_pynq_z2.Platform)
