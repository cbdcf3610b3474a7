"""CSWin Transformer training on ImageNet with MindSpore, driven by Snakemake or used on its own."""

__version__ = "0.1.0"
