"""The network's parameters: names, shapes, initial values, and their places in two flat buffers. Needs no MindSpore.

One buffer, `matrices`, contains all parameters with two or more axes (these have weight decay); a second one, `vectors`, contains
the others. So an optimizer step needs only a few operations, for any number of parameters. Names are those of the authors; files
store parameters by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from cswin.model.variants import PATCH_SIZE, Architecture

Shape = tuple[int, ...]
GROUPS = ("matrices", "vectors")


@dataclass(frozen=True)
class Piece:
    """Parameters of one piece of the network: the stem, a block, a merge, or the end (last LayerNorm and head)."""

    shapes: Mapping[str, Shape]

    def names(self, group: str) -> list[str]:
        """Parameters of a group, in the order of its buffer."""
        return [name for name, shape in self.shapes.items() if (len(shape) < 2) == GROUPS.index(group)]

    def sizes(self, group: str) -> tuple[int, ...]:
        """Number of values of each parameter."""
        return tuple(int(np.prod(self.shapes[name])) for name in self.names(group))


class Layout:
    """The places of the parameters in the buffers.

    Attributes:
        pieces: in the order of the forward pass, which is the order of the buffers.
        shapes: shape of each parameter by name, in the same order.
    """

    def __init__(self, pieces: Iterable[Piece]):
        self.pieces = tuple(pieces)
        self.shapes: dict[str, Shape] = {name: shape for piece in self.pieces for name, shape in piece.shapes.items()}

    @classmethod
    def of(cls, arch: Architecture) -> Layout:
        """The layout of an architecture's parameters."""
        return cls(Piece(shapes) for shapes in _pieces(arch))

    def size(self, group: str) -> int:
        """Number of values in a buffer."""
        return sum(sum(piece.sizes(group)) for piece in self.pieces)

    def pack(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays by parameter name -> float32 buffers by group."""
        return {
            group: np.concatenate(
                [np.asarray(arrays[name], np.float32).reshape(-1) for piece in self.pieces for name in piece.names(group)]
            )
            for group in GROUPS
        }

    def unpack(self, buffers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Inverse of `pack`, in the order of `shapes`; the arrays are views."""
        arrays: dict[str, np.ndarray] = {}
        for group in GROUPS:
            end = 0
            for piece in self.pieces:
                for name, size in zip(piece.names(group), piece.sizes(group), strict=True):
                    arrays[name] = buffers[group][end : end + size].reshape(self.shapes[name])
                    end += size
        return {name: arrays[name] for name in self.shapes}


def initial_weights(arch: Architecture, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Initial values, float32, as in the authors' code: linear weights truncated normal (0.02, cut at +-2 absolute, i.e. never),
    biases 0; convolutions uniform in +-1/sqrt(fan_in), PyTorch's default; LayerNorm 1 and 0. Deterministic given `rng`."""
    shapes, values = Layout.of(arch).shapes, {}
    fans = {name.removesuffix(".weight"): int(np.prod(shape[1:])) for name, shape in shapes.items() if len(shape) == 4}
    for name, shape in shapes.items():
        layer, kind = name.rsplit(".", 1)
        if layer in fans:
            value = rng.uniform(-(fans[layer] ** -0.5), fans[layer] ** -0.5, shape)
        elif len(shape) == 2:
            value = rng.normal(0.0, 0.02, shape)
        else:
            value = np.full(shape, float("norm" in layer or layer == "stage1_conv_embed.2") * (kind == "weight"))
        values[name] = value.astype(np.float32)
    return values


def _pieces(arch: Architecture) -> Iterator[dict[str, Shape]]:
    dims, kernel = arch.dims, 2 * PATCH_SIZE - 1
    yield _layer("stage1_conv_embed.0", dims[0], arch.in_channels, kernel, kernel) | _layer("stage1_conv_embed.2", dims[0])
    for stage in range(4):
        for block in range(arch.depth[stage]):
            yield _block(f"stage{stage + 1}.{block}", arch, stage)
        if stage < 3:
            merge = f"merge{stage + 1}"
            yield _layer(f"{merge}.conv", dims[stage + 1], dims[stage], 3, 3) | _layer(f"{merge}.norm", dims[stage + 1])
    yield _layer("norm", dims[3]) | _layer("head", arch.num_classes, dims[3])


def _layer(name: str, *weight: int) -> dict[str, Shape]:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def _block(name: str, arch: Architecture, stage: int) -> dict[str, Shape]:
    dim, hidden = arch.dims[stage], int(arch.dims[stage] * arch.mlp_ratio)
    branches = 1 if arch.full_window(stage) else 2
    shapes = _layer(f"{name}.qkv", 3 * dim, dim) | _layer(f"{name}.norm1", dim)
    for branch in range(branches):
        shapes |= _layer(f"{name}.attns.{branch}.get_v", dim // branches, 1, 3, 3)
    shapes |= _layer(f"{name}.proj", dim, dim) | _layer(f"{name}.mlp.fc1", hidden, dim)
    return shapes | _layer(f"{name}.mlp.fc2", dim, hidden) | _layer(f"{name}.norm2", dim)
