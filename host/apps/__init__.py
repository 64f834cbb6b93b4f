"""What users run: the command line, and what its commands do with compiler, driver and training."""
