"""Boards, a module each; README.md says how to add one."""

BOARDS = ("ulx3s", "orangecrab", "colorlight", "ecpix5", "arty_a7", "pynq_z1", "pynq_z2")
