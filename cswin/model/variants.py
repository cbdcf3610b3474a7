"""The architectures of the CSWin family, by name.

References: CSWin Transformer (arXiv 2107.00652), table 2, and the report, which trains the small model with stripes of
width 2 in the first stage. Both stripe settings of the small model have weights of the same shapes. Only the record of the
architecture distinguishes them, so every checkpoint contains it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from cswin.errors import UserError

PATCH_SIZE = 4  # the stem's stride; the three merges bring the total stride to 32
STRIDES = (4, 8, 16, 32)


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@dataclass(frozen=True)
class Architecture:
    """All parameters that determine the function of a network, except its weights.

    Attributes:
        embed_dim: channels after the stem; doubled by each of the three merges.
        depth: blocks per stage.
        split_size: stripe width per stage, in tokens. If it equals the stage's resolution, and in stage 4, one
            branch attends to the full window.
        num_heads: attention heads per stage; half of them attend vertically, half horizontally.
        image_size: side of the square input, in pixels.
        in_channels: 1 or 3 for images.
        num_classes: outputs of the head.
        mlp_ratio: hidden width of the MLP divided by the block's width.

    Raises:
        UserError: if the numbers are not compatible, with the reason.
    """

    embed_dim: int
    depth: tuple[int, int, int, int]
    split_size: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int]
    image_size: int = 224
    in_channels: int = 3
    num_classes: int = 1000
    mlp_ratio: float = 4.0

    def __post_init__(self):
        for field in ("depth", "split_size", "num_heads"):
            values = getattr(self, field)
            if not isinstance(values, list | tuple) or len(values) != 4 or not all(_positive(v) for v in values):
                raise UserError(f"{field}: {values!r} must be four positive integers, one per stage")
            object.__setattr__(self, field, tuple(values))
        for field in ("embed_dim", "image_size", "in_channels", "num_classes"):
            if not _positive(getattr(self, field)):
                raise UserError(f"{field}: {getattr(self, field)!r} must be a positive integer")
        if not isinstance(self.mlp_ratio, int | float) or self.mlp_ratio <= 0:
            raise UserError(f"mlp_ratio: {self.mlp_ratio!r} must be a positive number")
        if self.image_size < 32 or self.image_size % 32:
            raise UserError(f"image_size: {self.image_size} is not divisible by 32, the network's total stride; "
                            f"the nearest sizes that are: {self._nearest(self.image_size, 32)}")  # fmt: skip
        for stage in range(4):
            self._check_stage(stage)

    def _check_stage(self, stage: int) -> None:
        dim, heads = self.dims[stage], self.num_heads[stage]
        if dim % heads:
            raise UserError(f"num_heads[{stage}]: {heads} heads do not divide the width {dim} of stage {stage + 1}; "
                            f"choose a divisor of {dim}")  # fmt: skip
        if self.full_window(stage):
            return
        side, stripe = self.resolutions[stage], self.split_size[stage]
        if heads % 2:
            raise UserError(f"num_heads[{stage}]: {heads} heads cannot be halved between vertical and horizontal "
                            f"stripes in stage {stage + 1}; choose an even number")  # fmt: skip
        if side % stripe:
            divisors = [d for d in range(1, side + 1) if side % d == 0]
            raise UserError(f"split_size[{stage}]: a stripe of width {stripe} does not divide the {side} x {side} "
                            f"tokens of stage {stage + 1} at image_size {self.image_size}; "
                            f"widths that do: {divisors}")  # fmt: skip

    @staticmethod
    def _nearest(size: int, unit: int) -> str:
        low = max(unit, size // unit * unit)
        return f"{low} and {low + unit}"

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Side of each stage's token grid."""
        return tuple(self.image_size // stride for stride in STRIDES)

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.embed_dim * 2**stage for stage in range(4))

    def full_window(self, stage: int) -> bool:
        """Whether stage (0 to 3) attends with one branch to the full window instead of two to stripes."""
        return stage == 3 or self.resolutions[stage] == self.split_size[stage]

    def replace(self, **changes) -> Architecture:
        """The same architecture at another image size, class count or channel count, checked again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict:
        """Plain values for JSON and YAML."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict) -> Architecture:
        """Inverse of `to_dict`; unknown names are errors."""
        unknown = set(values) - {f.name for f in dataclasses.fields(cls)}
        if unknown:
            raise UserError(f"unknown architecture key: {', '.join(sorted(unknown))}")
        return cls(**values)

    def differences(self, other: Architecture) -> list[str]:
        """Lines 'key: mine, not theirs' for every field that differs."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [f"{key}: {mine[key]}, not {theirs[key]}" for key in mine if mine[key] != theirs[key]]


_SMALL = {"embed_dim": 64, "depth": (2, 4, 32, 2), "num_heads": (2, 4, 8, 16)}
_BASE = {"embed_dim": 96, "depth": (2, 4, 32, 2), "num_heads": (4, 8, 16, 32)}
_LARGE = {"embed_dim": 144, "depth": (2, 4, 32, 2), "num_heads": (6, 12, 24, 24)}

VARIANTS: dict[str, Architecture] = {
    "cswin_64_12211_tiny_224": Architecture(64, (1, 2, 21, 1), (1, 2, 7, 7), (2, 4, 8, 16)),
    "cswin_64_24322_small_224": Architecture(**_SMALL, split_size=(1, 2, 7, 7)),
    "cswin_64_24322_small_224_report": Architecture(**_SMALL, split_size=(2, 2, 7, 7)),
    "cswin_96_24322_base_224": Architecture(**_BASE, split_size=(1, 2, 7, 7)),
    "cswin_96_24322_base_384": Architecture(**_BASE, split_size=(1, 2, 12, 12), image_size=384),
    "cswin_144_24322_large_224": Architecture(**_LARGE, split_size=(1, 2, 7, 7)),
    "cswin_144_24322_large_384": Architecture(**_LARGE, split_size=(1, 2, 12, 12), image_size=384),
    # Ours: small enough for training on a laptop's CPU in minutes, on images of 32 pixels.
    "cswin_32_1121_digits_32": Architecture(
        32, (1, 1, 2, 1), (1, 1, 2, 1), (2, 2, 4, 8), image_size=32, in_channels=3, num_classes=10
    ),
}


def name_of(arch: Architecture) -> str | None:
    """Its name, whatever the number of classes and channels; None if it has none."""
    same = (
        name
        for name, known in VARIANTS.items()
        if known == arch.replace(num_classes=known.num_classes, in_channels=known.in_channels)
    )
    return next(same, None)


def variant(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        UserError: if the name is unknown; the message lists the known ones.
    """
    if name not in VARIANTS:
        raise UserError(f"arch: {name!r} is not known; one of: {', '.join(VARIANTS)}")
    return VARIANTS[name]
