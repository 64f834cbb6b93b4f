"""From a checked integer network to a program: `compile.py` says in which order the others do what."""
