"""Loops over numbers, compiled by numba for the current machine.

A kernel is compiled at its first call with arguments of a type (seconds for all kernels together) and kept on disk: in __pycache__
beside its module, in the user's cache folder if that is read-only, or in NUMBA_CACHE_DIR. If no folder is writable, each process
compiles for itself. Kernels run outside Python's global lock, so threads run in parallel. Floating-point operations are neither
fused nor reordered, so the results are bit-identical on every machine, unless a kernel allows more.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable

from numba import njit
from numba.core.caching import FunctionCache


class Cache(FunctionCache):
    """Numba's cache, but a damaged file is compiled again; Numba itself raises the error of unpickling at every call."""

    def load_overload(self, sig, target_context):
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:
            _say_damaged(str(self.cache_path), type(error).__name__)
            try:
                self.flush()
            except OSError:  # read-only: this process works without the cache
                self.disable()
            return None


@functools.cache  # once per process and folder
def _say_damaged(folder: str, reason: str) -> None:
    print(f"cswin: compiled kernels in {folder} are damaged ({reason}) and are compiled again", file=sys.stderr)


def compiled(function: Callable, fastmath: bool | frozenset[str] = False) -> Callable:
    """The function as a kernel. It may call only kernels of its own file: a change in another file would not update the cache.

    Args:
        function: plain loops over arrays.
        fastmath: LLVM's names of the optimisations that the compiler may use; none by default.
    """
    kernel = njit(nogil=True, error_model="numpy", fastmath=set(fastmath) if fastmath else False)(function)
    with contextlib.suppress(RuntimeError):  # no folder for the cache
        kernel._cache = Cache(function)  # what njit(cache=True) does with Numba's own class
    return kernel
