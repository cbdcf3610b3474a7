"""Cross-shaped window attention with LePE (arXiv 2107.00652, sections 3.2 and 3.3).

Attention runs inside stripes of `height` x `width` tokens. LePE, a 3x3 depthwise convolution on V, is zero-padded inside
each stripe: it never sees a neighbouring stripe.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, nn, ops

from cswin.model.precision import Precision
from cswin.model.stripes import Stripes


class DepthwiseWeight(nn.Cell):
    """LePE's parameters under the authors' name: weight (dim, 1, 3, 3), bias (dim,)."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = Parameter(ops.zeros((dim, 1, 3, 3), ms.float32), name="weight")
        self.bias = Parameter(ops.zeros((dim,), ms.float32), name="bias")

    def construct(self):
        return self.weight, self.bias


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

    def construct(self, v, weight, bias):
        """v: (windows, N, head_dim) -> the same shape, float32."""
        image = v.astype(ms.float32).transpose(0, 2, 1).reshape(-1, self.dim, self.cut.height, self.cut.width)
        y = self.conv(image, weight) + bias.reshape(1, self.dim, 1, 1)
        return y.reshape(-1, self.head_dim, self.cut.tokens).transpose(0, 2, 1)


class StripeAttention(nn.Cell):
    """Multi-head attention with LePE inside stripes of one shape.

    Args:
        cut: the stripes.
        dim: channels of this branch.
        num_heads: heads of this branch.
        formats: number formats of products and stream.
        lepe: `ConvolutionLePE` or `cpu.LePE` of this cut; without parameters, so that a stage's blocks share it.
    """

    def __init__(self, cut: Stripes, dim: int, num_heads: int, formats: Precision, lepe: nn.Cell):
        super().__init__()
        self.get_v = DepthwiseWeight(dim)
        self.lepe = lepe
        self.tokens, self.product = cut.tokens, formats.product
        self.scale = (dim // num_heads) ** -0.5
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.batch_matmul = ops.BatchMatMul()
        self.softmax = ops.Softmax(-1)

    def construct(self, q, k, v):
        """q, k, v: (windows, N, head_dim) in the product format -> (windows, N, head_dim), float32."""
        scores = self.scores(q * self.scale, k).astype(ms.float32)
        # Two axes only: over more, the CPU sums the softmax's gradient ten times as slowly.
        attention = self.softmax(scores.reshape(-1, self.tokens)).reshape(scores.shape).astype(self.product)
        weight, bias = self.get_v()
        return self.batch_matmul(attention, v).astype(ms.float32) + self.lepe(v, weight, bias)
