"""Parameters of the preprocessing in evaluation; module `evaluation` applies them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cswin.errors import UserError

if TYPE_CHECKING:
    from cswin.config.resolve import StageConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FILTERS = ("bilinear", "bicubic")


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of an image for the network.

    Attributes:
        image_size: side of the square input, pixels.
        crop_ratio: the image's short side is resized to int(image_size / crop_ratio), then the centre is cropped.
        mean, std: per channel, for values in [0, 1]; three values are also valid for grey images (see `Normalise`).
        interpolation: of the resize, `bicubic` or `bilinear`.
        channels: 3 (RGB) or 1 (grey).
    """

    image_size: int
    crop_ratio: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    channels: int = 3

    def __post_init__(self):
        for name in ("mean", "std"):
            values = tuple(float(v) for v in getattr(self, name))
            object.__setattr__(self, name, values)
            fits = len(values) == self.channels or (len(values), self.channels) == (3, 1)
            if not fits or not all(math.isfinite(v) for v in values):
                raise UserError(f"preprocessing.{name}: {list(values)} must be {self.channels} finite numbers, one per channel")
        if min(self.std) <= 0:
            raise UserError(f"preprocessing.std: {list(self.std)} must be positive")
        if not 0 < self.crop_ratio <= 1:
            raise UserError(f"preprocessing.crop_ratio: {self.crop_ratio} must lie in (0, 1]")

    @classmethod
    def of_stage(cls, config: StageConfig) -> Preprocessing:
        """Preprocessing in a stage's validation and in all later uses of its weights. The filter is bicubic if training draws it. A
        grey image uses the averages of mean and deviation over the colours."""
        arch, augment = config.architecture, config.augment
        mean, std = (
            tuple(values) if arch.in_channels == 3 else (sum(values) / len(values),) for values in (augment.mean, augment.std)
        )
        filter_ = augment.interpolation if augment.interpolation in FILTERS else "bicubic"
        return cls(arch.image_size, config.evaluation.crop_ratio, mean, std, filter_, arch.in_channels)
