"""Work on many rows, cut into pieces for all cores: the number of cores changes no bit of a result.

Where sums over rows are taken, the pieces depend on shapes alone (`pieces`), and their sums are added in their order. Elsewhere cuts
fall between rows (`parts`) or whole vectors (`runs`).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from cswin.distributed.cores import usable_cores

PIECE = 1 << 16  # numbers in a piece of work: many times what handing it over costs, and small against a layer


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(usable_cores(), "kernel")


def pieces(rows: int, width: int) -> list[tuple[int, int, int]]:
    """Number, first row and last (excluded) of each piece of `rows` rows of `width` numbers."""
    step = max(1, PIECE // width)
    return [(i, first, min(first + step, rows)) for i, first in enumerate(range(0, rows, step))]


def parts(rows: int, width: int) -> list[tuple[int, int, int]]:
    """The same, as few as keep all cores busy: where nothing is summed over rows, the cut changes no result."""
    count = max(1, min(usable_cores(), rows * width // PIECE))
    return [(i, i * rows // count, (i + 1) * rows // count) for i in range(count)]


def runs(size: int) -> list[tuple[int, int, int]]:
    """The same for `size` numbers in a row, cut at multiples of 64: no cut leaves a vector half filled."""
    return [(i, 64 * first, min(64 * last, size)) for i, first, last in parts(-(-size // 64), 64)]


def carry_out(work: Callable[[int, int, int], None], cut: list[tuple[int, int, int]]) -> None:
    """Call `work` with number, first and last of every piece, on all cores that the process may use, this thread's among them."""

    def share(number: int) -> None:
        for piece in cut[number::cores]:
            work(*piece)

    cores = min(usable_cores(), len(cut))
    others = [_threads().submit(share, number) for number in range(1, cores)]
    share(0)
    for other in others:
        other.result()
