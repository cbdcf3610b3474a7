"""Layers with the authors' parameter names and an explicit number format.

MindSpore's own layers differ from the reference in defaults (LayerNorm epsilon, GELU's approximation, convolution padding)
and in parameter names; with these, a parameter is called what the published checkpoints call it.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

LAYER_NORM_EPSILON = 1e-5


def _zeros(*shape: int) -> Tensor:
    return ops.zeros(shape, ms.float32)


class Linear(nn.Cell):
    """y = x W^T + b over the last axis; weight (out, in), bias (out,)."""

    def __init__(self, in_features: int, out_features: int, product: ms.Type):
        super().__init__()
        self.weight = Parameter(_zeros(out_features, in_features), name="weight")
        self.bias = Parameter(_zeros(out_features), name="bias")
        self.product = product
        self.matmul = ops.MatMul(transpose_b=True)
        self.bias_add = ops.BiasAdd()
        self.in_features, self.out_features = in_features, out_features

    def construct(self, x):
        y = self.matmul(x.reshape(-1, self.in_features).astype(self.product), self.weight.astype(self.product))
        y = self.bias_add(y, self.bias.astype(self.product))
        return y.reshape(x.shape[:-1] + (self.out_features,))


class LayerNorm(nn.Cell):
    """LayerNorm over the last axis in float32, epsilon 1e-5."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = Parameter(ops.ones((dim,), ms.float32), name="weight")
        self.bias = Parameter(_zeros(dim), name="bias")
        self.norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=LAYER_NORM_EPSILON)

    def construct(self, x):
        return self.norm(x.astype(ms.float32), self.weight, self.bias)[0]


class Conv2d(nn.Cell):
    """Convolution with bias and symmetric zero padding; (B, C, H, W) in and out."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, padding: int, product: ms.Type,
                 groups: int = 1):  # fmt: skip
        super().__init__()
        self.weight = Parameter(_zeros(out_channels, in_channels // groups, kernel, kernel), name="weight")
        self.bias = Parameter(_zeros(out_channels), name="bias")
        self.product = product
        self.conv = ops.Conv2D(out_channels, kernel, pad_mode="pad", pad=padding, stride=stride, group=groups)
        self.bias_add = ops.BiasAdd()

    def construct(self, x):
        y = self.conv(x.astype(self.product), self.weight.astype(self.product))
        return self.bias_add(y, self.bias.astype(self.product))


class ConvTokens(Conv2d):
    """A convolution that gives tokens: (B, C, H, W) -> (B, H' W', C')."""

    def construct(self, x):
        y = self.conv(x.astype(self.product), self.weight.astype(self.product))
        y = self.bias_add(y, self.bias.astype(self.product))
        return y.reshape(y.shape[0], y.shape[1], -1).swapaxes(1, 2)
