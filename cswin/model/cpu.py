"""Operations with explicit gradients for MindSpore's CPU kernels, or with our own compiled kernels.

Each cell computes the same function as the plain formulation, up to rounding. The reason is speed (benchmarks/README.md): the
gradients of BiasAdd, LayerNorm and GELU (a power), a transposition, and a sum over the last of more than two axes each take 4 to
30 ns per number; a gather of whole rows takes 0.4, a compiled kernel with one pass over memory 0.3 to 2.
"""

from __future__ import annotations

import math
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
        name: unique for its computation. MindSpore would distinguish functions by their addresses; with a name, a cached graph
            also finds them in another process.
        shapes: shapes of the results from those of the arguments.
        outputs: number of results.
    """

    def dtypes(*_):
        return ms.float32 if outputs == 1 else (ms.float32,) * outputs

    operation, number = ops.Custom(function, shapes, dtypes, "pyfunc"), zlib.crc32(f"cswin {name}".encode())
    add_pyfunc(number, function)
    operation.add_prim_attr("fn_id", number)
    return operation


class Linear(nn.Cell):
    """x w^T + b over the last axis: (..., in), (out * in,), (out,) -> (..., out)."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.times_transposed = ops.MatMul(transpose_b=True)
        self.times = ops.MatMul()
        self.transposed_times = ops.MatMul(transpose_a=True)
        self.bias_add = ops.BiasAdd()
        self.sum, self.cast, self.transpose = ops.ReduceSum(), ops.Cast(), ops.Transpose()
        self.shape, self.widens = (out_features, in_features), out_features > in_features

    def construct(self, x, w, b):
        y = self.bias_add(self.times_transposed(x.reshape(-1, self.shape[1]), w.reshape(self.shape)), b)
        return y.reshape(x.shape[:-1] + (self.shape[0],))

    def bprop(self, x, w, b, out, dout):
        rows, dy = x.reshape(-1, self.shape[1]), dout.reshape(-1, self.shape[0])
        dx = self.times(dy, w.reshape(self.shape)).reshape(x.shape)
        # The transposed factor is read column by column, so the narrower one of the two factors is transposed.
        dw = self.transpose(self.transposed_times(rows, dy), (1, 0)) if self.widens else self.transposed_times(dy, rows)
        return dx, dw.reshape(-1), self.cast(self.sum(self.cast(dy, ms.float32), 0), b.dtype)


class LayerNorm(nn.Cell):
    """LayerNorm over the last axis: x (..., C), weight (C,), bias (C,) -> result (..., C), each row's mean and 1 / deviation."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

        def forward(x, weight, bias):
            return kernels.layer_norm(x, weight, bias, epsilon=LAYER_NORM_EPSILON)

        def forward_shapes(x, weight, bias):
            return x, (x[0], 2)

        def gradient_shapes(x, weight, statistics, dy):
            return x, weight, weight

        self.forward = compiled_operation(forward, "layer_norm", forward_shapes, 2)
        self.gradient = compiled_operation(kernels.layer_norm_gradient, "layer_norm_gradient", gradient_shapes, 3)

    def construct(self, x, weight, bias):
        y, statistics = self.forward(x.reshape(-1, self.dim), weight, bias)
        return y.reshape(x.shape), statistics

    def bprop(self, x, weight, bias, out, dout):
        dx, dweight, dbias = self.gradient(x.reshape(-1, self.dim), weight, out[1], dout[0].reshape(-1, self.dim))
        return dx.reshape(x.shape), dweight, dbias


class Gelu(nn.Cell):
    """x Phi(x), Phi the normal distribution's cumulative function; any shape, computed in float32."""

    def __init__(self):
        super().__init__()

        def shape(x, *_):
            return x

        self.cast = ops.Cast()
        self.forward = compiled_operation(kernels.gelu, "gelu", shape)
        self.gradient = compiled_operation(kernels.gelu_gradient, "gelu_gradient", shape)

    def construct(self, x):
        return self.cast(self.forward(self.cast(x, ms.float32)), x.dtype)

    def bprop(self, x, out, dout):
        return (self.cast(self.gradient(self.cast(x, ms.float32), self.cast(dout, ms.float32)), x.dtype),)


class LePE(nn.Cell):
    """A depthwise 3x3 convolution inside windows of `width` tokens a row, zero-padded; without parameters of its own."""

    def __init__(self, width: int):
        super().__init__()

        def forward(v, weight, bias):
            return kernels.lepe(v, weight, bias, width=width)

        def gradient(v, weight, dout):
            return kernels.lepe_gradient(v, weight, dout, width=width)

        def forward_shape(v, weight, bias):
            return v

        def gradient_shapes(v, weight, dout):
            return v, weight, [math.prod(weight) // 9]

        self.cast = ops.Cast()
        self.forward = compiled_operation(forward, f"lepe {width}", forward_shape)
        self.gradient = compiled_operation(gradient, f"lepe_gradient {width}", gradient_shapes, 3)

    def construct(self, v, weight, bias):
        """v: (windows, N, head_dim), weight (dim * 9,), bias (dim,) -> the shape of v, float32."""
        return self.forward(self.cast(v, ms.float32), weight, bias)

    def bprop(self, v, weight, bias, out, dout):
        dv, dweight, dbias = self.gradient(self.cast(v, ms.float32), weight, dout)
        return self.cast(dv, v.dtype), dweight, dbias


class SquareSum(nn.Cell):
    """The sum of all squares, added in float64: (n,) -> float32."""

    def __init__(self):
        super().__init__()
        self.sum = compiled_operation(kernels.square_sum, "square_sum", lambda x: (1,))

    def construct(self, x):
        return self.sum(x).reshape(())


class Attention(nn.Cell):
    """softmax(scale q k^T) v over windows: q, k, v (windows, N, head_dim) -> result (windows, N, head_dim), the attention."""

    def __init__(self, tokens: int, scale: float, product: ms.Type):
        super().__init__()
        self.tokens, self.scale, self.product = tokens, scale, product
        self.times, self.cast = ops.BatchMatMul(), ops.Cast()
        self.times_transposed, self.transposed_times = ops.BatchMatMul(transpose_b=True), ops.BatchMatMul(transpose_a=True)
        self.softmax, self.sum = ops.Softmax(-1), ops.ReduceSum(keep_dims=True)

    def construct(self, q, k, v):
        scores = self.cast(self.times_transposed(q * self.scale, k), ms.float32)
        # Two axes only: over more, the CPU sums the softmax's gradient ten times as slowly.
        attention = self.softmax(scores.reshape(-1, self.tokens))
        return self.times(self.cast(attention, self.product).reshape(scores.shape), v), attention

    def bprop(self, q, k, v, out, dout):
        attention, dy = out[1], dout[0]
        shape = (-1, self.tokens, self.tokens)
        dv = self.transposed_times(self.cast(attention, self.product).reshape(shape), dy)
        slope = self.cast(self.times_transposed(dy, v), ms.float32).reshape(-1, self.tokens)
        slope = (slope - self.sum(slope * attention, -1)) * attention
        slope = self.cast(slope, self.product).reshape(shape)
        return self.times(slope, k) * self.scale, self.transposed_times(slope, q * self.scale), dv


class SoftCrossEntropy(nn.Cell):
    """`cswin.train.loss.SoftCrossEntropy`, computed in float64: logits, targets (B, classes) -> loss, its gradient for logits.

    MindSpore's exponential on the CPU has errors up to 3e-6, which would affect every gradient of the network.
    """

    def __init__(self):
        super().__init__()

        def shapes(logits, targets):
            return (1,), logits

        self.apply = compiled_operation(kernels.soft_cross_entropy, "soft_cross_entropy", shapes, 2)
        self.cast, self.zeros = ops.Cast(), ops.ZerosLike()

    def construct(self, logits, targets):
        loss, gradient = self.apply(self.cast(logits, ms.float32), targets)
        return loss.reshape(()), gradient

    def bprop(self, logits, targets, out, dout):
        return self.cast(out[1] * dout[0], logits.dtype), self.zeros(targets)


class TakeRows(nn.Cell):
    """Distributes rows of `depth` numbers: (B, L, C) -> one (windows, tokens, depth) per set. Each row is in exactly one set.

    Args:
        sets: for each result the indices of its rows among the L C / depth rows of an image.
        tokens: tokens of a window, for each result.
        depth: numbers in a row.
    """

    def __init__(self, sets: tuple[np.ndarray, ...], tokens: tuple[int, ...], depth: int):
        super().__init__()
        self.indices = tuple(Tensor(rows.astype(np.int32)) for rows in sets)
        self.inverse = Tensor(np.argsort(np.concatenate(sets)).astype(np.int32))
        self.rows = tuple((-1, len(rows), depth) for rows in sets)
        self.windows = tuple((-1, n, depth) for n in tokens)
        self.image, self.count = (-1, sum(map(len, sets)), depth), len(sets)
        self.gather, self.concat = ops.Gather(), ops.Concat(1)

    def construct(self, x):
        windows, rows = (), x.reshape(self.image)
        for i in range(self.count):
            windows += (self.gather(rows, self.indices[i], 1).reshape(self.windows[i]),)
        return windows

    def bprop(self, x, out, dout):
        rows = ()
        for i in range(self.count):
            rows += (dout[i].reshape(self.rows[i]),)
        return (self.gather(self.concat(rows), self.inverse, 1).reshape(x.shape),)


class PutRows(TakeRows):
    """Inverse of `TakeRows`: a tuple of (windows, tokens, depth) -> (B, area, C)."""

    def __init__(self, sets: tuple[np.ndarray, ...], tokens: tuple[int, ...], depth: int, area: int):
        super().__init__(sets, tokens, depth)
        self.area = area

    def construct(self, windows):
        rows = ()
        for i in range(self.count):
            rows += (windows[i].reshape(self.rows[i]),)
        x = self.gather(self.concat(rows), self.inverse, 1)
        return x.reshape(x.shape[0], self.area, -1)

    def bprop(self, windows, out, dout):
        parts, rows = (), dout.reshape(self.image)
        for i in range(self.count):
            parts += (self.gather(rows, self.indices[i], 1).reshape(self.windows[i]),)
        return (parts,)
