"""Imported once, only by the fork server: the worker processes inherit the modules and the compiled kernels."""

import cswin.data.loader.batches  # noqa: F401
from cswin.data.augment.transforms import compile_kernels

compile_kernels()
