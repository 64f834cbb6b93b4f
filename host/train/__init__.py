"""Quantization-aware training with Brevitas, and coordinate pruning: PyTorch in, QONNX out."""

import warnings

# Brevitas says at import that an optional CUDA package, of no use here, is missing.
warnings.filterwarnings("ignore", message="fast_hadamard_transform package not found")
