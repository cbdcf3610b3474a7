"""Operations with gradients written out for MindSpore's CPU kernels.

Each cell computes exactly what the plain formulation computes, up to rounding; what differs is which kernels do it. What
was measured (benchmarks/README.md): the gradient of BiasAdd, of LayerNorm and of GELU (a power), a transposition, and a
sum over the last of more than two axes each take 4 to 30 ns per number; a product with a row of ones, an elementwise
operation on equal shapes and a gather of whole rows take 0.3 to 1 ns.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from cswin.model.formulation import LAYER_NORM_EPSILON


class Linear(nn.Cell):
    """x w^T + b: (M, in), (out, in), (out,) -> (M, out)."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.times_transposed = ops.MatMul(transpose_b=True)
        self.times = ops.MatMul()
        self.transposed_times = ops.MatMul(transpose_a=True)
        self.bias_add = ops.BiasAdd()
        self.sum = ops.ReduceSum()
        self.widens = out_features > in_features

    def construct(self, x, w, b):
        return self.bias_add(self.times_transposed(x, w), b)

    def bprop(self, x, w, b, out, dout):
        dx = self.times(dout, w)
        # The transposed factor is read column by column: of the two ways to the same product, the narrower one.
        dw = self.transposed_times(x, dout).transpose(1, 0) if self.widens else self.transposed_times(dout, x)
        return dx, dw, self.sum(dout.astype(ms.float32), 0).astype(b.dtype)


class LayerNorm(nn.Cell):
    """LayerNorm of rows: x (M, C), weight (C,), bias (C,) -> result, normalised rows (M, C), 1 / deviation (M, 1)."""

    def __init__(self):
        super().__init__()
        self.mean = ops.ReduceMean(keep_dims=True)
        self.bias_add = ops.BiasAdd()
        self.sum = ops.ReduceSum()

    def construct(self, x, weight, bias):
        centred = x - self.mean(x, -1)
        scale = 1.0 / ops.sqrt(self.mean(centred * centred, -1) + LAYER_NORM_EPSILON)
        normal = centred * scale
        return self.bias_add(normal * weight, bias), normal, scale

    def bprop(self, x, weight, bias, out, dout):
        dy, normal, scale = dout[0], out[1], out[2]
        scaled = dy * weight
        correlation = self.mean(scaled * normal, -1)
        dx = (scaled - normal * correlation - self.mean(scaled, -1)) * scale
        return dx, self.sum(dy * normal, 0), self.sum(dy, 0)


class Gelu(nn.Cell):
    """x Phi(x), Phi the normal distribution's cumulative function; the second result, Phi(x), is kept for the gradient."""

    def construct(self, x):
        phi = ops.erf(x * math.sqrt(0.5)) * 0.5 + 0.5
        return x * phi, phi

    def bprop(self, x, out, dout):
        density = ops.exp(x * x * -0.5) * (1.0 / math.sqrt(2.0 * math.pi))
        return (dout[0] * (x * density + out[1]),)


class TakeRows(nn.Cell):
    """Takes disjoint sets of rows that together are all of them: (B, R, d) -> one (B, R_i, d) per set.

    Args:
        sets: for each result the indices of its rows; every row once.
    """

    def __init__(self, sets: tuple[np.ndarray, ...]):
        super().__init__()
        self.indices = tuple(Tensor(rows.astype(np.int32)) for rows in sets)
        self.inverse = Tensor(np.argsort(np.concatenate(sets)).astype(np.int32))
        self.gather = ops.Gather()
        self.concat = ops.Concat(1)

    def construct(self, x):
        rows = ()
        for index in self.indices:
            rows += (self.gather(x, index, 1),)
        return rows

    def bprop(self, x, out, dout):
        return (self.gather(self.concat(dout), self.inverse, 1),)


class PutRows(nn.Cell):
    """Inverse of `TakeRows` for two sets or one: results (B, R, d)."""

    def __init__(self, sets: tuple[np.ndarray, ...]):
        super().__init__()
        self.indices = tuple(Tensor(rows.astype(np.int32)) for rows in sets)
        self.inverse = Tensor(np.argsort(np.concatenate(sets)).astype(np.int32))
        self.gather = ops.Gather()
        self.concat = ops.Concat(1)

    def construct(self, rows):
        return self.gather(self.concat(rows), self.inverse, 1)

    def bprop(self, rows, out, dout):
        parts = ()
        for index in self.indices:
            parts += (self.gather(dout, index, 1),)
        return (parts,)
