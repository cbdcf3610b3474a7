"""Random erasing (Zhong et al., arXiv 1708.04896) as timm defines it: after normalisation, normal noise as the fill."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from cswin.errors import UserError

MODES = ("pixel", "const", "rand")
_TRIES = 10


class Box(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int


class Patch(NamedTuple):
    """A box and its fill, (C, H, W) of the box or (C, 1, 1), float32."""

    box: Box
    fill: np.ndarray


def paste(image: np.ndarray, patches: list[Patch]) -> np.ndarray:
    """Writes patches to `image` (C, H, W) float32 in place and returns it. Later patches overwrite earlier ones."""
    for (top, left, height, width), fill in patches:
        image[:, top : top + height, left : left + width] = fill
    return image


class RandomErasing:
    """Erases boxes of a normalised image.

    With probability `prob` an image gets 1 to `count` boxes (uniform). The area of each is a uniform share, `min_area` to
    `max_area`, of the image area, divided by the number of boxes; its aspect ratio (height / width) is log-uniform between
    `min_aspect` and its inverse. A box that does not fit is drawn again, up to ten times, and then left out.

    Fill, by `mode`: `pixel` standard normal noise for each value, `rand` one standard normal colour for each box, `const` zero,
    which is the mean colour.
    """

    def __init__(
        self,
        prob: float,
        mode: str = "pixel",
        count: int = 1,
        *,
        min_area: float = 0.02,
        max_area: float = 1 / 3,
        min_aspect: float = 0.3,
    ) -> None:
        if mode not in MODES:
            raise UserError(f"erase_mode is {mode!r}: choose one of {', '.join(MODES)}")
        if not 0 <= prob <= 1:
            raise UserError(f"erase_prob is {prob}: give a probability from 0 to 1")
        if count < 1:
            raise UserError(f"erase_count is {count}: give 1 or more; for no erasing set erase_prob to 0")
        if not 0 < min_area <= max_area <= 1 or not 0 < min_aspect <= 1:
            raise UserError(
                f"erasing wants 0 < min_area <= max_area <= 1 and 0 < min_aspect <= 1, not {min_area}, {max_area}, {min_aspect}"
            )
        self.prob, self.mode, self.count = prob, mode, count
        self.min_area, self.max_area = min_area, max_area
        self.log_aspect = math.log(1 / min_aspect)

    def draw(self, rng: np.random.Generator, height: int, width: int) -> list[Box]:
        """The boxes for an image of `height` x `width` pixels; without boxes the list is empty."""
        if rng.random() >= self.prob:
            return []
        count = int(rng.integers(1, self.count + 1)) if self.count > 1 else 1
        boxes = (self._draw_box(rng, height, width, height * width / count) for _ in range(count))
        return [box for box in boxes if box is not None]

    def _draw_box(self, rng: np.random.Generator, height: int, width: int, area: float) -> Box | None:
        for _ in range(_TRIES):
            box_area = rng.uniform(self.min_area, self.max_area) * area
            aspect = math.exp(rng.uniform(-self.log_aspect, self.log_aspect))
            box_height = round(math.sqrt(box_area * aspect))
            box_width = round(math.sqrt(box_area / aspect))
            if box_height < height and box_width < width:
                top = int(rng.integers(0, height - box_height, endpoint=True))
                left = int(rng.integers(0, width - box_width, endpoint=True))
                return Box(top, left, box_height, box_width)
        return None

    def fill(self, boxes: list[Box], channels: int, rng: np.random.Generator) -> list[Patch]:
        """The boxes with their fill."""
        patches = []
        for box in boxes:
            shape = (channels, box.height, box.width) if self.mode == "pixel" else (channels, 1, 1)
            constant = self.mode == "const"
            patches.append(
                Patch(box, np.zeros(shape, np.float32) if constant else rng.standard_normal(shape, dtype=np.float32))
            )
        return patches

    def patches(self, rng: np.random.Generator, channels: int, height: int, width: int) -> list[Patch]:
        """All random values for the erasing of an image of this shape."""
        return self.fill(self.draw(rng, height, width), channels, rng)

    def __str__(self) -> str:
        return f"erase up to {self.count} box(es) with {self.mode} fill at probability {self.prob:g}"
