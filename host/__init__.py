"""Software on the host: from a model file to a program, and to its results."""
