"""Imported by the fork server alone, once: the worker processes inherit the modules and the compiled kernels."""

import cswin.data.loader  # noqa: F401
from cswin.data.transforms import compile_kernels

compile_kernels()
