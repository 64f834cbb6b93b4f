"""Quantization-aware training and coordinate pruning: PyTorch in, QONNX out."""
