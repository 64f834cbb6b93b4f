"""Data sets from the files they are published as, with numpy alone."""
