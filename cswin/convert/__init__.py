"""Conversion between PyTorch's files and checkpoints; needs no PyTorch and runs nothing that a file asks for."""
