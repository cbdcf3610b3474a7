"""Conversion between PyTorch's files and checkpoints. It needs no PyTorch and executes no code of a file."""
