"""Cross-shaped window attention with LePE (arXiv 2107.00652, sections 3.2 and 3.3).

Attention runs inside stripes of `height` x `width` tokens. LePE, a 3x3 depthwise convolution on V, is zero-padded inside each
stripe: it never sees a neighbouring stripe.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from cswin.model.precision import Precision


def lepe_selection(height: int, width: int) -> np.ndarray:
    """Constant that spreads a 3x3 kernel into the stripe's token-to-token matrix.

    Returns:
        float32, shape (9, N * N) with N = height * width: entry [tap, i * N + j] is 1 where token j lies at the tap's offset
        from token i inside the stripe. `weight.reshape(C, 9) @ selection` is one N x N matrix per channel.
    """
    tokens = height * width
    selection = np.zeros((9, height, width, height, width), np.float32)
    for tap, (dy, dx) in enumerate((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
        for y in range(max(0, -dy), min(height, height - dy)):
            for x in range(max(0, -dx), min(width, width - dx)):
                selection[tap, y, x, y + dy, x + dx] = 1.0
    return selection.reshape(9, tokens * tokens)


class DepthwiseWeight(nn.Cell):
    """LePE's parameters under the authors' name: weight (dim, 1, 3, 3), bias (dim,)."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = Parameter(ops.zeros((dim, 1, 3, 3), ms.float32), name="weight")
        self.bias = Parameter(ops.zeros((dim,), ms.float32), name="bias")

    def construct(self):
        return self.weight, self.bias


class StripeAttention(nn.Cell):
    """Multi-head attention with LePE inside stripes of one shape.

    Args:
        dim: channels of this branch.
        num_heads: heads of this branch.
        side: the stage's resolution in tokens.
        height, width: of a stripe, in tokens.
        formats: number formats of products and stream.
        lepe: `matrix` computes LePE as one N x N matrix per channel (fast on the CPU), `conv` as a depthwise convolution over
            the stripes (fast where convolutions are); equal up to rounding.
    """

    def __init__(self, dim: int, num_heads: int, side: int, height: int, width: int, formats: Precision, lepe: str):
        super().__init__()
        self.get_v = DepthwiseWeight(dim)
        self.dim, self.heads, self.head_dim = dim, num_heads, dim // num_heads
        self.side, self.height, self.width = side, height, width
        self.rows, self.columns, self.tokens = side // height, side // width, height * width
        self.product = formats.product
        self.scale = self.head_dim**-0.5
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.batch_matmul = ops.BatchMatMul()
        self.softmax = ops.Softmax(-1)
        self.use_matrix = lepe == "matrix"
        if self.use_matrix:
            self.selection = Tensor(lepe_selection(height, width))
        else:
            self.conv = ops.Conv2D(dim, 3, pad_mode="pad", pad=1, group=dim)

    def windows(self, x):
        """(B, L, dim) -> (B * stripes, heads, N, head_dim)."""
        x = x.reshape(-1, self.rows, self.height, self.columns, self.width, self.heads, self.head_dim)
        return x.transpose(0, 1, 3, 5, 2, 4, 6).reshape(-1, self.heads, self.tokens, self.head_dim)

    def tokens_of(self, x):
        """Inverse of `windows`."""
        x = x.reshape(-1, self.rows, self.columns, self.heads, self.height, self.width, self.head_dim)
        return x.transpose(0, 1, 4, 2, 5, 3, 6).reshape(-1, self.side * self.side, self.dim)

    def lepe(self, v):
        """LePE of v, both (B * stripes, heads, N, head_dim); the sum of nine terms in float32."""
        weight, bias = self.get_v()
        if self.use_matrix:
            matrix = ops.matmul(weight.reshape(self.dim, 9), self.selection).reshape(self.dim, self.tokens, self.tokens)
            channels = v.astype(ms.float32).transpose(1, 3, 2, 0).reshape(self.dim, self.tokens, -1)
            y = self.batch_matmul(matrix, channels) + bias.reshape(self.dim, 1, 1)
            return y.reshape(self.heads, self.head_dim, self.tokens, -1).transpose(3, 0, 2, 1)
        image = v.astype(ms.float32).transpose(0, 1, 3, 2).reshape(-1, self.dim, self.height, self.width)
        y = self.conv(image, weight) + bias.reshape(1, self.dim, 1, 1)
        return y.reshape(-1, self.heads, self.head_dim, self.tokens).transpose(0, 1, 3, 2)

    def construct(self, q, k, v):
        """q, k, v: (B, L, dim) -> (B, L, dim)."""
        q = self.windows(q * self.scale)
        k = self.windows(k)
        v = self.windows(v)
        attention = self.softmax(self.scores(q, k).astype(ms.float32)).astype(self.product)
        y = self.batch_matmul(attention, v).astype(ms.float32) + self.lepe(v)
        return self.tokens_of(y)
