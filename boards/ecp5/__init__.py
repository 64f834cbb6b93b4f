"""Boards with a Lattice ECP5, and the open tools that make their bitstreams."""
