"""Operations with gradients written out for MindSpore's CPU kernels, or by compiled kernels of our own.

Each cell computes exactly what the plain formulation computes, up to rounding; what differs is how. What was measured
(benchmarks/README.md): the gradient of BiasAdd, of LayerNorm and of GELU (a power), a transposition, and a sum over the
last of more than two axes each take 4 to 30 ns per number; a gather of whole rows takes 0.4, a compiled kernel that
passes once over memory 0.3 to 2.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops.operations._pyfunc_registry import add_pyfunc

from cswin.model import kernels
from cswin.model.formulation import LAYER_NORM_EPSILON


def compiled_operation(function: Callable, name: str, shapes: Callable, outputs: int = 1) -> ops.Custom:
    """A function of float32 arrays as an operation of MindSpore's graphs on the CPU.

    Args:
        function: takes and returns NumPy arrays.
        name: unique to what it computes. MindSpore would tell functions apart by their addresses; a graph from its cache
            finds them by name in another process too.
        shapes: the results' shapes from the arguments'.
        outputs: number of results.
    """

    def dtypes(*_):
        return ms.float32 if outputs == 1 else (ms.float32,) * outputs

    operation, number = ops.Custom(function, shapes, dtypes, "pyfunc"), zlib.crc32(f"cswin {name}".encode())
    add_pyfunc(number, function)
    operation.add_prim_attr("fn_id", number)
    return operation


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
    """LayerNorm of rows: x (M, C), weight (C,), bias (C,) -> result (M, C), each row's mean and 1 / deviation (M, 2)."""

    def __init__(self):
        super().__init__()

        def forward(x, weight, bias):
            return kernels.layer_norm(x, weight, bias, epsilon=LAYER_NORM_EPSILON)

        def forward_shapes(x, weight, bias):
            return x, (x[0], 2)

        def gradient_shapes(x, weight, statistics, dy):
            return x, weight, weight

        self.forward = compiled_operation(forward, "layer_norm", forward_shapes, 2)
        self.gradient = compiled_operation(kernels.layer_norm_gradient, "layer_norm_gradient", gradient_shapes, 3)

    def construct(self, x, weight, bias):
        return self.forward(x, weight, bias)

    def bprop(self, x, weight, bias, out, dout):
        return self.gradient(x, weight, out[1], dout[0])


class Gelu(nn.Cell):
    """x Phi(x), Phi the normal distribution's cumulative function; any shape, computed in float32."""

    def __init__(self):
        super().__init__()

        def shape(x, *_):
            return x

        self.forward = compiled_operation(kernels.gelu, "gelu", shape)
        self.gradient = compiled_operation(kernels.gelu_gradient, "gelu_gradient", shape)

    def construct(self, x):
        return self.forward(x.astype(ms.float32)).astype(x.dtype)

    def bprop(self, x, out, dout):
        return (self.gradient(x.astype(ms.float32), dout.astype(ms.float32)).astype(x.dtype),)


class LePE(nn.Cell):
    """A depthwise 3x3 convolution inside windows of `width` tokens a row, zero-padded; holds no parameters."""

    def __init__(self, width: int):
        super().__init__()

        def forward(v, weight, bias):
            return kernels.lepe(v, weight, bias, width=width)

        def gradient(v, weight, dout):
            return kernels.lepe_gradient(v, weight, dout, width=width)

        def forward_shape(v, weight, bias):
            return v

        def gradient_shapes(v, weight, dout):
            return v, weight, weight[:1]

        self.forward = compiled_operation(forward, f"lepe {width}", forward_shape)
        self.gradient = compiled_operation(gradient, f"lepe_gradient {width}", gradient_shapes, 3)

    def construct(self, v, weight, bias):
        """v: (windows, N, head_dim) -> the same shape, float32."""
        return self.forward(v.astype(ms.float32), weight, bias)

    def bprop(self, v, weight, bias, out, dout):
        dv, dweight, dbias = self.gradient(v.astype(ms.float32), weight, dout)
        return dv.astype(v.dtype), dweight, dbias


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
