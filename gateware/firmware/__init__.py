"""The soft CPU's firmware in C, and what compiles it."""
