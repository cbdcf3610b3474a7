"""The CSWin Transformer (arXiv 2107.00652) as a function of images and weights."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
from mindspore import nn, ops

from cswin.model.attention import StripeAttention
from cswin.model.formulation import choose_formulation
from cswin.model.layers import ConvTokens, Cut, Gelu, LayerNorm, Linear, Take
from cswin.model.precision import Precision, precision
from cswin.model.stripes import RowLayout, TransposeLayout, branches
from cswin.model.variants import PATCH_SIZE, Architecture
from cswin.model.weights import Layout, Piece


class Block(nn.Cell):
    """A CSWin block: striped attention and an MLP, each with a LayerNorm before it and a residual connection.

    All blocks of a stage use the same cell: its parameters are arguments.
    """

    def __init__(self, arch: Architecture, stage: int, piece: Piece, formats: Precision, form: str):
        super().__init__()
        self.take = Take(piece)
        dim, heads, cuts = arch.dims[stage], arch.num_heads[stage], branches(arch, stage)
        hidden, self.branches, self.stream = int(dim * arch.mlp_ratio), len(cuts), formats.stream
        self.layout = (RowLayout if form == "CPU" else TransposeLayout)(cuts, dim, heads)
        self.attentions = nn.CellList([StripeAttention(cut, heads // len(cuts), dim // heads, formats, form) for cut in cuts])
        self.norm, self.gelu, self.cast = LayerNorm(dim, form), Gelu(form), ops.Cast()
        self.qkv = Linear(dim, 3 * dim, formats.product, form)
        self.proj = Linear(dim, dim, formats.product, form)
        self.fc1 = Linear(dim, hidden, formats.product, form)
        self.fc2 = Linear(hidden, dim, formats.product, form)

    def attend(self, x, m, v):
        """Attention of all branches, (B, L, C) -> (B, L, C)."""
        windows, outputs = self.layout.split(self.qkv(x, m[0], v[0])), ()
        for i in range(self.branches):
            outputs += (self.attentions[i](*windows[i], m[1 + i], v[3 + i]),)
        return self.proj(self.layout.join(outputs), m[1 + self.branches], v[3 + self.branches])

    def construct(self, x, matrices, vectors, attention_factor=None, mlp_factor=None):
        """x: (B, L, C); matrices, vectors: flat; the factors (B, 1, 1) are the drop path factors of the two branches."""
        (m, v), at = self.take(matrices, vectors), self.branches
        y = self.cast(self.attend(self.norm(x, v[1], v[2]), m, v), self.stream)
        if attention_factor is not None:
            y = y * attention_factor
        x = x + y
        y = self.cast(self.fc1(self.norm(x, v[6 + at], v[7 + at]), m[2 + at], v[4 + at]), self.stream)
        y = self.cast(self.fc2(self.gelu(y), m[3 + at], v[5 + at]), self.stream)
        if mlp_factor is not None:
            y = y * mlp_factor
        return x + y


class Merge(nn.Cell):
    """3x3 stride-2 convolution that halves the resolution and doubles the channels, then LayerNorm."""

    def __init__(self, dim: int, side: int, piece: Piece, formats: Precision, form: str):
        super().__init__()
        self.conv = ConvTokens((dim, 2 * dim), 3, 2, piece, formats.product, form)
        self.dim, self.side, self.transpose = dim, side, ops.Transpose()

    def construct(self, x, matrices, vectors):
        return self.conv(self.transpose(x, (0, 2, 1)).reshape(-1, self.dim, self.side, self.side), matrices, vectors)


class CSWin(nn.Cell):
    """The network. It has no parameters of its own: `cswin.model.weights.Layout` gives their places in the two buffers.

    Args:
        arch: the architecture.
        formats: number formats (default: float32 throughout).
        formulation: `CPU` or `Ascend`, two formulations of the same function, see `cswin.model.formulation` (default: the one for
            MindSpore's current device).
        recompute: stages (1 to 4) of which only the inputs of the blocks are kept for the backward pass, which computes the blocks
            again: less memory, the same numbers. The CPU formulation keeps its tensors all the same.

    Inputs: images (B, in_channels, image_size, image_size), float32, normalised; the parameters from `cut`; in
    training the drop path factors (2 * blocks, B) of `drop_path.drop_path_factors`.
    Output: logits (B, num_classes), float32.
    """

    def __init__(
        self,
        arch: Architecture,
        formats: Precision | None = None,
        formulation: str | None = None,
        recompute: Sequence[int] = (),
    ):
        super().__init__()
        formats, form = formats or precision("O0"), choose_formulation(formulation)
        self.arch, self.layout, self.form, self.stream = arch, Layout.of(arch), form, formats.stream
        pieces = self.layout.pieces
        self.cut, self.cast, self.transpose = Cut(self.layout), ops.Cast(), ops.Transpose()
        self.split_factors, self.depth, self.count = ops.Split(0, 2 * sum(arch.depth)), arch.depth, len(pieces)
        self.first = tuple(1 + sum(arch.depth[:stage]) + stage for stage in range(4))  # block of each stage among the pieces
        self.stem = ConvTokens(
            (arch.in_channels, arch.embed_dim), 2 * PATCH_SIZE - 1, PATCH_SIZE, pieces[0], formats.product, form
        )
        self.blocks = nn.CellList([Block(arch, stage, pieces[self.first[stage]], formats, form) for stage in range(4)])
        for stage in recompute:
            self.blocks[stage - 1].recompute()
        self.merges = nn.CellList(
            [Merge(arch.dims[i], arch.resolutions[i], pieces[self.first[i + 1] - 1], formats, form) for i in range(3)]
        )
        self.take = Take(pieces[-1])
        self.norm = LayerNorm(arch.dims[3], form)
        self.head = Linear(arch.dims[3], arch.num_classes, ms.float32, form)

    def features(self, x, weights, drop_path=None):
        """Tokens after the stem and after each stage: five tensors (B, L, C)."""
        x = self.cast(self.stem(x, weights[0], weights[self.count]), self.stream)
        outputs, factors, piece, branch = (x,), (), 1, 0
        if drop_path is not None:
            factors = self.split_factors(self.cast(drop_path.reshape(-1, 1, 1), self.stream))
        for stage in range(4):
            if stage > 0:
                x = self.cast(self.merges[stage - 1](x, weights[piece], weights[self.count + piece]), self.stream)
                piece += 1
            for _ in range(self.depth[stage]):
                x = self.blocks[stage](x, weights[piece], weights[self.count + piece], *factors[branch : branch + 2])
                piece, branch = piece + 1, branch + 2
            outputs += (x,)
        return outputs

    def feature_maps(self, x, weights):
        """The stages' outputs as maps, as timm's `features_only`: four tensors (B, arch.dims[i], H, H), strides 4, 8, 16, 32."""
        maps, tokens = (), self.features(x, weights)
        for i in range(4):
            side = self.arch.resolutions[i]
            maps += (self.transpose(tokens[1 + i], (0, 2, 1)).reshape(-1, self.arch.dims[i], side, side),)
        return maps

    def outputs(self, x, weights, drop_path=None):
        """Pooled features (B, arch.dims[3]), which the head classifies, and logits (B, num_classes); both float32."""
        tokens = self.features(x, weights, drop_path)[4]
        (weight,), (norm_weight, norm_bias, bias) = self.take(weights[self.count - 1], weights[2 * self.count - 1])
        pooled = self.norm(tokens, norm_weight, norm_bias).mean(1)
        return pooled, self.head(pooled, weight, bias)

    def construct(self, x, weights, drop_path=None):
        return self.outputs(x, weights, drop_path)[1]
