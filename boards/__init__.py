"""Boards, a module each; README.md says how to add one."""

BOARDS = {
    "ulx3s": "sentei.boards.ecp5.ulx3s",
    "orangecrab": "sentei.boards.ecp5.orangecrab",
    "colorlight": "sentei.boards.ecp5.colorlight",
    "ecpix5": "sentei.boards.ecp5.ecpix5",
    "arty_a7": "sentei.boards.xilinx.arty_a7",
    "pynq_z1": "sentei.boards.xilinx.pynq_z1",
    "pynq_z2": "sentei.boards.xilinx.pynq_z2",
}
