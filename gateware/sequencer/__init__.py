"""Carries out a program's instructions, with no help from a CPU."""
