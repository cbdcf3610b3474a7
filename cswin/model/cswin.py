"""The CSWin Transformer (arXiv 2107.00652) with the authors' parameter names."""

from __future__ import annotations

from collections import OrderedDict

import mindspore as ms
import numpy as np
from mindspore import nn

from cswin.model import cpu
from cswin.model.attention import ConvolutionLePE, StripeAttention
from cswin.model.formulation import resolve
from cswin.model.layers import ConvTokens, Gelu, LayerNorm, Linear
from cswin.model.precision import Precision, precision
from cswin.model.stripes import RowLayout, TransposeLayout, branches
from cswin.model.variants import PATCH_SIZE, Architecture


class Mlp(nn.Cell):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, dim: int, hidden: int, formats: Precision, form: str):
        super().__init__()
        self.fc1 = Linear(dim, hidden, formats.product, form)
        self.fc2 = Linear(hidden, dim, formats.product, form)
        self.stream = formats.stream
        self.gelu = Gelu(form)

    def construct(self, x):
        return self.fc2(self.gelu(self.fc1(x).astype(self.stream)))


class StageConstants:
    """What the blocks of a stage share: cells without parameters that hold index and selection constants."""

    def __init__(self, arch: Architecture, stage: int, form: str):
        dim, heads = arch.dims[stage], arch.num_heads[stage]
        self.cuts = branches(arch, stage)
        self.layout = (RowLayout if form == "CPU" else TransposeLayout)(self.cuts, dim, heads)
        if form == "CPU":
            self.lepes = [cpu.LePE(cut.width) for cut in self.cuts]
        else:
            self.lepes = [ConvolutionLePE(cut, heads // len(self.cuts), dim // heads) for cut in self.cuts]


class Block(nn.Cell):
    """A CSWin block: striped attention and an MLP, each behind a LayerNorm and beside a residual connection."""

    def __init__(self, arch: Architecture, stage: int, formats: Precision, form: str, constants: StageConstants):
        super().__init__()
        dim, heads, count = arch.dims[stage], arch.num_heads[stage], len(constants.cuts)
        self.qkv = Linear(dim, 3 * dim, formats.product, form)
        self.norm1 = LayerNorm(dim, form)
        self.layout = constants.layout
        pairs = zip(constants.cuts, constants.lepes, strict=True)
        self.attns = nn.CellList([StripeAttention(cut, dim // count, heads // count, formats, lepe) for cut, lepe in pairs])
        self.proj = Linear(dim, dim, formats.product, form)
        self.mlp = Mlp(dim, int(dim * arch.mlp_ratio), formats, form)
        self.norm2 = LayerNorm(dim, form)
        self.stream = formats.stream

    def attend(self, x):
        """Attention of all branches, (B, L, C) -> (B, L, C)."""
        outputs = ()
        for attention, (q, k, v) in zip(self.attns, self.layout.split(self.qkv(x))):  # noqa: B905 (graph mode)
            outputs += (attention(q, k, v),)
        return self.proj(self.layout.join(outputs))

    def construct(self, x, attention_factor=None, mlp_factor=None):
        """x: (B, L, C); the factors, each (B,), are the drop path of the two branches (None: no drop path)."""
        y = self.attend(self.norm1(x)).astype(self.stream)
        if attention_factor is not None:
            y = y * attention_factor.reshape(-1, 1, 1).astype(self.stream)
        x = x + y
        y = self.mlp(self.norm2(x)).astype(self.stream)
        if mlp_factor is not None:
            y = y * mlp_factor.reshape(-1, 1, 1).astype(self.stream)
        return x + y


class Merge(nn.Cell):
    """3x3 stride-2 convolution that halves the resolution and doubles the channels, then LayerNorm."""

    def __init__(self, dim: int, side: int, formats: Precision, form: str):
        super().__init__()
        self.conv = ConvTokens(dim, 2 * dim, 3, 2, 1, formats.product)
        self.norm = LayerNorm(2 * dim, form)
        self.dim, self.side, self.stream = dim, side, formats.stream

    def construct(self, x):
        image = x.swapaxes(1, 2).reshape(-1, self.dim, self.side, self.side)
        return self.norm(self.conv(image)).astype(self.stream)


class CSWin(nn.Cell):
    """The network.

    Args:
        arch: the architecture.
        formats: number formats (default: float32 throughout).
        formulation: `CPU` or `Ascend`, two ways to write the same function, see `cswin.model.formulation` (default: the
            one for the device that MindSpore is set to).

    Inputs: images (B, in_channels, image_size, image_size), float32, normalised; in training the drop path factors
    (2 * blocks, B) of `drop_path.drop_path_factors`. Output: logits (B, num_classes), float32.
    """

    def __init__(self, arch: Architecture, formats: Precision | None = None, formulation: str | None = None):
        super().__init__()
        formats, form = formats or precision("O0"), resolve(formulation)
        self.arch, self.stream = arch, formats.stream
        stem = ConvTokens(arch.in_channels, arch.embed_dim, 7, PATCH_SIZE, 2, formats.product)
        self.stage1_conv_embed = nn.SequentialCell(OrderedDict([("0", stem), ("2", LayerNorm(arch.embed_dim, form))]))
        for stage in range(4):
            constants = StageConstants(arch, stage, form)
            blocks = [Block(arch, stage, formats, form, constants) for _ in range(arch.depth[stage])]
            setattr(self, f"stage{stage + 1}", nn.CellList(blocks))
            if stage < 3:
                setattr(self, f"merge{stage + 1}", Merge(arch.dims[stage], arch.resolutions[stage], formats, form))
        self.norm = LayerNorm(arch.dims[3], form)
        self.head = Linear(arch.dims[3], arch.num_classes, ms.float32, form)

    def features(self, x, drop_path=None):
        """Tokens after the stem and after each stage: five tensors (B, L, C)."""
        x = self.stage1_conv_embed(x).astype(self.stream)
        outputs, branch = (x,), 0
        for stage, merge in ((self.stage1, None), (self.stage2, self.merge1), (self.stage3, self.merge2),
                             (self.stage4, self.merge3)):  # fmt: skip
            if merge is not None:
                x = merge(x)
            for block in stage:
                x = block(x) if drop_path is None else block(x, drop_path[branch], drop_path[branch + 1])
                branch += 2
            outputs += (x,)
        return outputs

    def classify(self, tokens):
        """Logits from the last stage's tokens."""
        return self.head(self.norm(tokens).mean(1))

    def construct(self, x, drop_path=None):
        return self.classify(self.features(x, drop_path)[4])


def initialise(network: CSWin, rng: np.random.Generator) -> None:
    """Set all parameters as the authors do: linear weights truncated normal (0.02, cut at +-2 absolute, i.e. never), biases 0;
    convolutions uniform in +-1/sqrt(fan_in), PyTorch's default; LayerNorm 1 and 0. Deterministic given `rng`."""
    fans = {p.name: int(np.prod(p.shape[1:])) for p in network.get_parameters() if len(p.shape) == 4}
    for p in network.get_parameters():
        layer, kind = p.name.rsplit(".", 1)
        fan_in = fans.get(f"{layer}.weight")
        if fan_in is not None:
            value = rng.uniform(-(fan_in**-0.5), fan_in**-0.5, p.shape)
        elif len(p.shape) == 2:
            value = rng.normal(0.0, 0.02, p.shape)
        else:
            value = np.full(p.shape, float("norm" in layer or layer == "stage1_conv_embed.2") * (kind == "weight"))
        p.set_data(ms.Tensor(value.astype(np.float32)))
