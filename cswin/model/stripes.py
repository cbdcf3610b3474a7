"""The division of a stage's tokens into stripes, in two implementations: from qkv to windows and from windows to tokens.

A window is one head of one stripe of one image; its N tokens are in row order. Both implementations use windows of shape
(B, stripes, heads, N, head_dim), flattened to (windows, N, head_dim).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from mindspore import nn, ops

from cswin.model.cpu import PutRows, TakeRows
from cswin.model.variants import Architecture


@dataclass(frozen=True)
class Stripes:
    """The division of a grid of side x side tokens into stripes of height x width tokens in one branch."""

    side: int
    height: int
    width: int

    @property
    def rows(self) -> int:
        """Number of stripes in the vertical direction."""
        return self.side // self.height

    @property
    def columns(self) -> int:
        """Number of stripes in the horizontal direction."""
        return self.side // self.width

    @property
    def count(self) -> int:
        """Number of stripes of an image."""
        return self.rows * self.columns

    @property
    def tokens(self) -> int:
        """Number of tokens of a stripe (N)."""
        return self.height * self.width

    def grid(self) -> np.ndarray:
        """Indices of the tokens of every stripe among those of the image, (count, tokens)."""
        tokens = np.arange(self.side**2).reshape(self.rows, self.height, self.columns, self.width)
        return tokens.transpose(0, 2, 1, 3).reshape(self.count, self.tokens)


def branches(arch: Architecture, stage: int) -> tuple[Stripes, ...]:
    """The branches of a stage: vertical stripes for the first half of the heads, horizontal ones for the second; or one
    branch with the full window."""
    side, stripe = arch.resolutions[stage], arch.split_size[stage]
    if arch.full_window(stage):
        return (Stripes(side, side, side),)
    return Stripes(side, side, stripe), Stripes(side, stripe, side)


class TransposeLayout(nn.Cell):
    """Implementation with slices, transpositions and a concatenation.

    Args:
        cuts: one per branch.
        dim: channels of the block.
        num_heads: heads of the block.
    """

    def __init__(self, cuts: tuple[Stripes, ...], dim: int, num_heads: int):
        super().__init__()
        self.dim, self.head_dim, self.branches = dim, dim // num_heads, len(cuts)
        self.width, self.heads, self.area = dim // len(cuts), num_heads // len(cuts), cuts[0].side ** 2
        self.grids = tuple((cut.rows, cut.height, cut.columns, cut.width) for cut in cuts)
        self.concat = ops.Concat(-1)

    def split(self, qkv):
        """(B, L, 3 dim) -> (q, k, v) of each branch, each (windows, N, head_dim)."""
        results = ()
        for i in range(self.branches):
            rows, height, columns, width = self.grids[i]
            parts = ()
            for first in range(i * self.width, 3 * self.dim, self.dim):
                x = qkv[:, :, first : first + self.width]
                x = x.reshape(-1, rows, height, columns, width, self.heads, self.head_dim)
                parts += (x.transpose(0, 1, 3, 5, 2, 4, 6).reshape(-1, height * width, self.head_dim),)
            results += (parts,)
        return results

    def join(self, windows):
        """One (windows, N, head_dim) per branch -> (B, L, dim)."""
        results = ()
        for i in range(self.branches):
            rows, height, columns, width = self.grids[i]
            x = windows[i].reshape(-1, rows, columns, self.heads, height, width, self.head_dim)
            results += (x.transpose(0, 1, 4, 2, 5, 3, 6).reshape(-1, self.area, self.width),)
        return results[0] if self.branches == 1 else self.concat(results)


class RowLayout(nn.Cell):
    """Implementation with gathers of whole rows of head_dim numbers, which the CPU copies 5 times as fast as it transposes."""

    def __init__(self, cuts: tuple[Stripes, ...], dim: int, num_heads: int):
        super().__init__()
        heads, count, depth = num_heads // len(cuts), len(cuts), dim // num_heads
        places = [cut.grid()[:, None, :] * count + i for i, cut in enumerate(cuts)]  # of (token, branch)
        head = np.arange(heads)[None, :, None]
        tokens = tuple(cut.tokens for cut in cuts)
        self.put = PutRows(tuple((place * heads + head).ravel() for place in places), tokens, depth, cuts[0].side ** 2)
        taken = []
        for i, cut in enumerate(cuts):
            for part in range(3):
                place = (cut.grid()[:, None, :] * 3 + part) * count + i
                taken.append((place * heads + head).ravel())
        self.take = TakeRows(tuple(taken), tuple(n for n in tokens for _ in range(3)), depth)

    def split(self, qkv):
        """As `TransposeLayout.split`."""
        windows = self.take(qkv)
        return (windows,) if len(windows) == 3 else (windows[:3], windows[3:])

    def join(self, windows):
        """As `TransposeLayout.join`."""
        return self.put(windows)
