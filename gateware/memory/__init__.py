"""Where data lies and how it moves: activation memory, tables, and the way between them and main memory."""
