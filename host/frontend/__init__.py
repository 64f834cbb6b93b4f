"""From a model file to the integer network: `importer.py` walks the graph, each other module knows a family of
operators or a part of the arithmetic.
"""
