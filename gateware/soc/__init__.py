"""The SoC around the engine, and the memories behind it."""
