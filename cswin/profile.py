"""Parameters, multiply-accumulates and memory of an architecture, by formula; needs no MindSpore.

What is counted (the first two exactly as in the paper):
    parameters: all trained numbers, including biases.
    MACs, forward, one image: convolutions (including LePE), linear layers and both attention products. Biases,
        LayerNorm, softmax, GELU, residual sums and pooling are not counted. A training step costs three times as many.
    memory of the weights' copies: float32 at every level; weights, gradients, AdamW's two moments, EMA: five copies.
    memory of activations: what the backward pass reads, each tensor once, in the number format of the operation that
        reads it, without copies in another layout and without workspaces. Per block and token: the inputs of both
        LayerNorms, of qkv, proj, fc1, GELU and fc2, q, k, v, and each head's row of attention probabilities. This is a
        lower bound: a runtime that keeps copies in other layouts takes more. Of a stage that is computed again in the
        backward pass: the inputs of its blocks, and the rest of one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cswin.errors import UserError
from cswin.model.variants import PATCH_SIZE, Architecture

FLOAT32 = 4  # bytes
COPIES_OF_WEIGHTS = {"weights": 1, "gradients": 1, "AdamW moments": 2, "EMA": 1}
STAGES = tuple(f"stage {number}" for number in range(1, 5))
# Bytes of a number in (products, stream) at each level of cswin.model.precision.
LEVEL_BYTES = {"O0": (4, 4), "O1": (2, 4), "O2": (2, 2)}


@dataclass(frozen=True)
class Part:
    """One part of the network.

    Attributes:
        name: `stem`, `stage 1`, `merge 1`, …, `head`.
        parameters: numbers trained.
        macs: multiply-accumulates of the forward pass, one image.
        activations: bytes that the backward pass reads, one image.
    """

    name: str
    parameters: int
    macs: int
    activations: int


def _convolution(name: str, channels: tuple[int, int], kernel: int, sides: tuple[int, int], level: str) -> Part:
    """A convolution and the LayerNorm after it; channels and sides (of square images) are pairs of input and output."""
    (inputs, outputs), (input_side, side), (product, _) = channels, sides, LEVEL_BYTES[level]
    weights = kernel * kernel * inputs * outputs
    kept = input_side**2 * inputs * product + side**2 * outputs * FLOAT32
    return Part(name, weights + outputs + 2 * outputs, weights * side**2, kept)


def _stage(arch: Architecture, stage: int, level: str, recomputed: bool) -> Part:
    """All blocks of a stage."""
    product, stream = LEVEL_BYTES[level]
    dim, side, heads, blocks = arch.dims[stage], arch.resolutions[stage], arch.num_heads[stage], arch.depth[stage]
    hidden, tokens = int(dim * arch.mlp_ratio), side * side
    window = tokens if arch.full_window(stage) else side * arch.split_size[stage]
    linear = 3 * dim * dim + dim * dim + 2 * dim * hidden
    biases = 3 * dim + dim + hidden + dim
    parameters = linear + biases + 10 * dim + 2 * 2 * dim  # LePE has 9 weights and a bias per channel; two LayerNorms
    macs = tokens * (linear + 9 * dim + 2 * window * dim)
    # The backward pass of softmax reads the probabilities in float32, that of the product in the product's format.
    row = FLOAT32 if product == FLOAT32 else FLOAT32 + product
    read_by_products = 6 * dim + hidden  # inputs of qkv, proj and fc1; q, k, v; input of fc2
    kept = tokens * (2 * dim * FLOAT32 + read_by_products * product + hidden * stream + heads * window * row)
    kept_of_others = tokens * dim * stream if recomputed else kept
    return Part(STAGES[stage], blocks * parameters, blocks * macs, kept + (blocks - 1) * kept_of_others)


def profile(arch: Architecture, level: str = "O0", recompute: Sequence[int] = ()) -> list[Part]:
    """The parts in the order of the forward pass; totals are the sums over them. `recompute`: as for `CSWin`.

    Raises:
        UserError: if the level is not O0, O1 or O2.
    """
    if level not in LEVEL_BYTES:
        raise UserError(f"amp_level: {level!r} is not known; one of {', '.join(LEVEL_BYTES)}")
    sides, dims = arch.resolutions, arch.dims
    parts = [_convolution("stem", (arch.in_channels, dims[0]), 7, (PATCH_SIZE * sides[0], sides[0]), level)]
    for stage in range(4):
        if stage:
            between = slice(stage - 1, stage + 1)
            parts.append(_convolution(f"merge {stage}", dims[between], 3, sides[between], level))
        parts.append(_stage(arch, stage, level, stage + 1 in recompute))
    width, classes = dims[3], arch.num_classes
    kept = (sides[3] ** 2 * width + width) * FLOAT32
    parts.append(Part("head", 2 * width + width * classes + classes, width * classes, kept))
    return parts


def evaluation_bytes(arch: Architecture, level: str = "O0") -> tuple[int, int]:
    """Memory of one image in an evaluation, in bytes: pixels in the loader (float32 and uint8), and tensors of the largest block.

    The block's tensors are counted as above. A runtime takes more: MindSpore 2.8 on the CPU 2.1 times as much (CSWin-T, 30 MB).
    """
    pixels = arch.in_channels * arch.image_size**2
    blocks = dict(zip(STAGES, arch.depth, strict=True))
    return pixels * (FLOAT32 + 1), max(part.activations // blocks.get(part.name, 1) for part in profile(arch, level))


def report(name: str, arch: Architecture, batch: int, level: str = "O0", recompute: Sequence[int] = ()) -> str:
    """The table that `cswin profile` prints."""
    parts = profile(arch, level, recompute)
    parts.append(Part("total", *(sum(getattr(p, f) for p in parts) for f in ("parameters", "macs", "activations"))))
    lines = [
        f"{name}: image size {arch.image_size}, channels {arch.in_channels}, classes {arch.num_classes}, "
        f"stripes {', '.join(map(str, arch.split_size))}",
        "",
        f"{'':10}{'parameters':>14}{'MACs per image':>20}{f'activations, batch {batch} at {level}':>32}",
    ]
    lines += [f"{p.name:10}{p.parameters:>14,}{p.macs:>20,}{_mebibytes(batch * p.activations):>32}" for p in parts]
    lines += ["", "memory, independent of the batch (float32)"]
    total = parts[-1]
    sizes = {key: copies * FLOAT32 * total.parameters for key, copies in COPIES_OF_WEIGHTS.items()}
    lines += [f"  {key:20}{_mebibytes(size):>14}" for key, size in sizes.items()]
    whole = sum(sizes.values()) + batch * total.activations
    lines += [f"  {'with activations':20}{_mebibytes(whole):>14}"]
    lines += [
        "",
        "MACs: convolutions, linear layers and both attention products; a training step takes three times as many.",
        "activations: what the backward pass reads, each tensor once; a runtime needs more, for copies and workspaces.",
    ]
    return "\n".join(lines)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
