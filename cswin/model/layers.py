"""Layers as functions of their input and their parameters, with an explicit number format.

MindSpore's own layers differ from the reference in defaults (LayerNorm epsilon, GELU's approximation, convolution padding).
Parameters are arguments, so all blocks of a stage are one cell with different weights. They are flat, as in the buffers of
`cswin.model.weights`. Each layer has two equivalent formulations, see `cswin.model.formulation`.
"""

from __future__ import annotations

import math

import mindspore as ms
from mindspore import nn, ops
from mindspore.ops.auto_generate import SplitWithSize

from cswin.model import cpu
from cswin.model.formulation import LAYER_NORM_EPSILON, choose_formulation
from cswin.model.weights import GROUPS, Layout, Piece


class Cut(nn.Cell):
    """Cuts the two buffers: (matrices, vectors) -> a tuple of the pieces' matrices, followed by the pieces' vectors.

    The network is differentiated with respect to these, and their gradients are joined. For a part of a buffer, MindSpore's
    gradient would be a whole buffer of zeros around it, and all these buffers would be added.
    """

    def __init__(self, layout: Layout):
        super().__init__()
        self.sizes = tuple(tuple(sum(piece.sizes(group)) for piece in layout.pieces) for group in GROUPS)
        self.split, self.concat, self.count = SplitWithSize(), ops.Concat(), len(layout.pieces)

    def construct(self, matrices, vectors):
        return self.split(matrices, self.sizes[0], 0) + self.split(vectors, self.sizes[1], 0)

    def join(self, parts):
        """Inverse of a call, for gradients."""
        return self.concat(parts[: self.count]), self.concat(parts[self.count :])


class Take(nn.Cell):
    """Cuts a piece's part of the two buffers into its parameters: (matrices, vectors) -> two tuples of flat arrays."""

    def __init__(self, piece: Piece):
        super().__init__()
        self.matrices, self.vectors = (Parts(piece.sizes(group)) for group in GROUPS)
        self.one_matrix = len(piece.sizes(GROUPS[0])) == 1

    def construct(self, matrices, vectors):
        return (matrices,) if self.one_matrix else self.matrices(matrices), self.vectors(vectors)


class Parts(nn.Cell):
    """Cuts a tensor (n,) into two or more consecutive parts of these sizes."""

    def __init__(self, sizes: tuple[int, ...]):
        super().__init__()
        self.sizes, self.split, self.concat = sizes, SplitWithSize(), ops.Concat()

    def construct(self, x):
        return self.split(x, self.sizes, 0)

    def bprop(self, x, out, dout):
        return (self.concat(dout),)


class Linear(nn.Cell):
    """y = x W^T + b over the last axis; weight (out * in,), bias (out,), float32."""

    def __init__(self, in_features: int, out_features: int, product: ms.Type, formulation: str | None = None):
        super().__init__()
        self.product, self.cast = product, ops.Cast()
        self.apply_to = (cpu.Linear if choose_formulation(formulation) == "CPU" else _Linear)(in_features, out_features)

    def construct(self, x, weight, bias):
        return self.apply_to(self.cast(x, self.product), self.cast(weight, self.product), self.cast(bias, self.product))


class _Linear(nn.Cell):
    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.matmul = ops.MatMul(transpose_b=True)
        self.bias_add = ops.BiasAdd()
        self.shape = (out_features, in_features)

    def construct(self, x, weight, bias):
        y = self.bias_add(self.matmul(x.reshape(-1, self.shape[1]), weight.reshape(self.shape)), bias)
        return y.reshape(x.shape[:-1] + (self.shape[0],))


class LayerNorm(nn.Cell):
    """LayerNorm over the last axis in float32, epsilon 1e-5; weight and bias (dim,)."""

    def __init__(self, dim: int, formulation: str | None = None):
        super().__init__()
        self.cast = ops.Cast()
        if choose_formulation(formulation) == "CPU":
            self.norm = cpu.LayerNorm(dim)
        else:
            self.norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=LAYER_NORM_EPSILON)

    def construct(self, x, weight, bias):
        return self.norm(self.cast(x, ms.float32), weight, bias)[0]


class Gelu(nn.Cell):
    """The exact GELU, x Phi(x)."""

    def __init__(self, formulation: str | None = None):
        super().__init__()
        self.gelu = cpu.Gelu() if choose_formulation(formulation) == "CPU" else _Gelu()

    def construct(self, x):
        return self.gelu(x)


class _Gelu(nn.Cell):
    """It keeps its input for the backward pass, and nothing else. MindSpore's own gradient keeps three tensors of that size."""

    def __init__(self):
        super().__init__()
        self.gelu, self.cast, self.erf, self.exp = nn.GELU(approximate=False), ops.Cast(), ops.Erf(), ops.Exp()

    def construct(self, x):
        return self.gelu(x)

    def bprop(self, x, out, dout):
        # depend: computed when dout is there, not before, and not shared with the forward pass, which would keep its tensors.
        y = self.cast(ops.depend(x, dout), ms.float32)
        root = y * math.sqrt(0.5)
        slope = self.erf(root) + 1.0 + y * self.exp(-(root * root)) * math.sqrt(2 / math.pi)
        return (self.cast(self.cast(dout, ms.float32) * slope * 0.5, x.dtype),)


class ConvTokens(nn.Cell):
    """A convolution with symmetric zero padding, then LayerNorm over the tokens: (B, C, H, W) -> (B, H' W', C'), float32.

    Args:
        channels: C and C'.
        kernel, stride: H' = H / stride.
        piece: the parameters.
        product: the convolution's number format.
    """

    def __init__(self, channels: tuple[int, int], kernel: int, stride: int, piece: Piece, product: ms.Type, form: str):
        super().__init__()
        inputs, outputs = channels
        self.take = Take(piece)
        self.shape, self.product = (outputs, inputs, kernel, kernel), product
        padding = (kernel - stride + 1) // 2  # as the authors: 2 for the stem (kernel 7, stride 4), 1 for a merge (3, 2)
        self.conv = ops.Conv2D(outputs, kernel, pad_mode="pad", pad=padding, stride=stride)
        self.bias_add, self.transpose, self.cast = ops.BiasAdd(), ops.Transpose(), ops.Cast()
        self.norm = LayerNorm(outputs, form)

    def construct(self, x, matrices, vectors):
        """x: (B, C, H, W); matrices: the weight; vectors: the bias, LayerNorm's weight and bias."""
        (weight,), (bias, norm_weight, norm_bias) = self.take(matrices, vectors)
        y = self.conv(self.cast(x, self.product), self.cast(weight.reshape(self.shape), self.product))
        y = self.bias_add(y, self.cast(bias, self.product))
        return self.norm(self.transpose(y.reshape(y.shape[0], self.shape[0], -1), (0, 2, 1)), norm_weight, norm_bias)
