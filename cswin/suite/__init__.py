"""The test sets of ImageNet-1K, judged as timm judges them."""
