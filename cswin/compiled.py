"""Loops over numbers, compiled by numba for the machine they run on.

A kernel is compiled at its first call with arguments of a kind, for all of them together a matter of seconds, and kept on disk: in
__pycache__ beside its source, in the user's cache folder where that is read-only, or in NUMBA_CACHE_DIR. Where nothing can be
written, each process compiles for itself. Kernels run outside of Python's lock, so that threads work side by side. Floating-point
arithmetic is what is written, no fused or reordered operations, and so the same bits on every machine, unless a kernel allows more.
"""

from __future__ import annotations

from collections.abc import Callable

from numba import njit


def compiled(function: Callable, fastmath: bool | frozenset[str] = False) -> Callable:
    """The function as a kernel. It may call only kernels of its own file: a change elsewhere would not renew what is on disk.

    Args:
        function: plain loops over arrays.
        fastmath: LLVM's names of the freedoms the compiler may take; none by default.
    """
    options = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath) if fastmath else False}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no folder for the cache
        return njit(**options)(function)
