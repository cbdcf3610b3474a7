"""Cross-shaped window attention with LePE (arXiv 2107.00652, sections 3.2 and 3.3).

Attention runs inside stripes of `height` x `width` tokens. LePE, a 3x3 depthwise convolution on V, is zero-padded inside
each stripe, so it does not use neighbouring stripes.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops

from cswin.model import cpu
from cswin.model.precision import Precision
from cswin.model.stripes import Stripes


class ConvolutionLePE(nn.Cell):
    """LePE as a depthwise convolution over the stripes.

    Args:
        cut: the stripes.
        heads, head_dim: of the branch.
    """

    def __init__(self, cut: Stripes, heads: int, head_dim: int):
        super().__init__()
        self.cut, self.heads, self.head_dim, self.dim = cut, heads, head_dim, heads * head_dim
        self.conv = ops.Conv2D(self.dim, 3, pad_mode="pad", pad=1, group=self.dim)
        self.transpose, self.cast = ops.Transpose(), ops.Cast()

    def construct(self, v, weight, bias):
        """v: (windows, N, head_dim), weight (dim * 9,), bias (dim,) -> the shape of v, float32."""
        image = self.transpose(self.cast(v, ms.float32), (0, 2, 1)).reshape(-1, self.dim, self.cut.height, self.cut.width)
        y = self.conv(image, weight.reshape(self.dim, 1, 3, 3)) + bias.reshape(1, self.dim, 1, 1)
        return self.transpose(y.reshape(-1, self.head_dim, self.cut.tokens), (0, 2, 1))


class StripeAttention(nn.Cell):
    """Multi-head attention with LePE inside stripes of one shape.

    Args:
        cut: the stripes.
        heads, head_dim: of this branch.
        formats: number formats of products and stream.
        form: `CPU` or `Ascend`, see `cswin.model.formulation`.
    """

    def __init__(self, cut: Stripes, heads: int, head_dim: int, formats: Precision, form: str):
        super().__init__()
        if form == "CPU":
            self.lepe, self.attend = cpu.LePE(cut.width), cpu.Attention(cut.tokens, head_dim**-0.5, formats.product)
        else:
            self.lepe, self.attend = ConvolutionLePE(cut, heads, head_dim), _Attention(head_dim**-0.5, formats.product)
        self.cast = ops.Cast()

    def construct(self, q, k, v, weight, bias):
        """q, k, v: (windows, N, head_dim) in the product format; LePE's weight (dim * 9,), bias (dim,), float32.

        Returns (windows, N, head_dim), float32.
        """
        return self.cast(self.attend(q, k, v)[0], ms.float32) + self.lepe(v, weight, bias)


class _Attention(nn.Cell):
    def __init__(self, scale: float, product: ms.Type):
        super().__init__()
        self.scale, self.product, self.cast = scale, product, ops.Cast()
        self.times_transposed, self.times, self.softmax = ops.BatchMatMul(transpose_b=True), ops.BatchMatMul(), ops.Softmax(-1)

    def construct(self, q, k, v):
        attention = self.softmax(self.cast(self.times_transposed(q * self.scale, k), ms.float32))
        return self.times(self.cast(attention, self.product), v), attention
