"""One group of columns: from its stream of tasks to the sums in its part of the array."""
