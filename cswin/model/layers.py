"""Layers with the authors' parameter names and an explicit number format.

MindSpore's own layers differ from the reference in defaults (LayerNorm epsilon, GELU's approximation, convolution
padding) and in parameter names; with these, a parameter is called what the published checkpoints call it. Each layer is
written in two equal ways, see `cswin.model.formulation`.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from cswin.model import cpu
from cswin.model.formulation import LAYER_NORM_EPSILON, resolve


def _zeros(*shape: int) -> Tensor:
    return ops.zeros(shape, ms.float32)


class Linear(nn.Cell):
    """y = x W^T + b over the last axis; weight (out, in), bias (out,)."""

    def __init__(self, in_features: int, out_features: int, product: ms.Type, formulation: str | None = None):
        super().__init__()
        self.weight = Parameter(_zeros(out_features, in_features), name="weight")
        self.bias = Parameter(_zeros(out_features), name="bias")
        self.product = product
        self.apply_to = (cpu.Linear if resolve(formulation) == "CPU" else _Linear)(in_features, out_features)
        self.in_features, self.out_features = in_features, out_features

    def construct(self, x):
        rows = x.reshape(-1, self.in_features).astype(self.product)
        y = self.apply_to(rows, self.weight.astype(self.product), self.bias.astype(self.product))
        return y.reshape(x.shape[:-1] + (self.out_features,))


class _Linear(nn.Cell):
    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.matmul = ops.MatMul(transpose_b=True)
        self.bias_add = ops.BiasAdd()

    def construct(self, x, weight, bias):
        return self.bias_add(self.matmul(x, weight), bias)


class LayerNorm(nn.Cell):
    """LayerNorm over the last axis in float32, epsilon 1e-5."""

    def __init__(self, dim: int, formulation: str | None = None):
        super().__init__()
        self.weight = Parameter(ops.ones((dim,), ms.float32), name="weight")
        self.bias = Parameter(_zeros(dim), name="bias")
        self.dim, self.by_rows = dim, resolve(formulation) == "CPU"
        if self.by_rows:
            self.norm = cpu.LayerNorm()
        else:
            self.norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=LAYER_NORM_EPSILON)

    def construct(self, x):
        x = x.astype(ms.float32)
        if self.by_rows:
            return self.norm(x.reshape(-1, self.dim), self.weight, self.bias)[0].reshape(x.shape)
        return self.norm(x, self.weight, self.bias)[0]


class Gelu(nn.Cell):
    """The exact GELU, x Phi(x)."""

    def __init__(self, formulation: str | None = None):
        super().__init__()
        self.gelu = cpu.Gelu() if resolve(formulation) == "CPU" else nn.GELU(approximate=False)

    def construct(self, x):
        return self.gelu(x)


class ConvTokens(nn.Cell):
    """A convolution with bias and symmetric zero padding that gives tokens: (B, C, H, W) -> (B, H' W', C')."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, padding: int, product: ms.Type):
        super().__init__()
        self.weight = Parameter(_zeros(out_channels, in_channels, kernel, kernel), name="weight")
        self.bias = Parameter(_zeros(out_channels), name="bias")
        self.product = product
        self.conv = ops.Conv2D(out_channels, kernel, pad_mode="pad", pad=padding, stride=stride)
        self.bias_add = ops.BiasAdd()

    def construct(self, x):
        y = self.conv(x.astype(self.product), self.weight.astype(self.product))
        y = self.bias_add(y, self.bias.astype(self.product))
        return y.reshape(y.shape[0], y.shape[1], -1).swapaxes(1, 2)
