"""The engine and the SoC in Migen and LiteX, and the soft CPU's firmware."""
