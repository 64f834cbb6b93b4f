"""The command line: one function a command, and the options that they share."""
