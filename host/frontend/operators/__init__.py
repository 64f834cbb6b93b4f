"""One module for each family of operators: its handlers, listed in `HANDLERS`, say what an operator does to a value."""
