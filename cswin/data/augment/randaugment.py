"""RandAugment (arXiv 1909.13719) by timm's definition and string syntax, such as `rand-m9-mstd0.5-inc1`.

A draw (which operations, with which arguments) is made without an image, so that its distribution can be tested by itself. The
operations are bit-identical to Pillow's (`cswin.data.images.kernels`). At magnitude 10 an operation has its full strength.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from cswin.data.augment.operations import FULL, OPERATIONS, Fill
from cswin.data.images.preprocessing import FILTERS
from cswin.errors import UserError

_UNIFORM_ABOVE = 100.0
_SYNTAX = (
    "write rand-m9-mstd0.5-inc1, with any of m (magnitude), n (operations), p (probability of each), mstd (noise of the "
    "magnitude; above 100: uniform from 0), mmax (largest magnitude), inc (1: all operations grow with the magnitude)"
)
RANDOM = "random"


INCREASING = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd",
    "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing",
    "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
)  # fmt: skip
PLAIN = tuple(name.removesuffix("Increasing") for name in INCREASING)


@dataclass(frozen=True)
class Operation:
    """One drawn operation: name, magnitude after noise and clipping, argument, and for geometric operations the filter."""

    name: str
    magnitude: float
    argument: tuple[float, ...] = ()
    resample: str | None = None


@dataclass(frozen=True)
class RandAugment:
    """Draws `layers` operations with replacement, each carried out with probability `prob`, and applies them in order.

    The magnitude of each is N(magnitude, magnitude_std), or uniform from 0 to `magnitude` if the deviation is infinite,
    clipped to 0 .. `magnitude_max`. `fill` is the colour (RGB, or one grey value) outside the image.
    """

    magnitude: int = 10
    layers: int = 2
    prob: float = 0.5
    magnitude_std: float = 0.0
    magnitude_max: float = FULL
    operations: tuple[str, ...] = PLAIN
    fill: Fill = (128, 128, 128)
    filters: tuple[str, ...] = FILTERS

    @classmethod
    def parse(cls, text: str, *, mean_fill: Fill, interpolation: str = "bicubic") -> RandAugment:
        """Reads timm's string syntax; `interpolation` as for `filters_of`, drawn for each geometric operation.

        `inc0` disables increasing magnitudes. (timm reads it as `inc1`, because it tests whether the text "0" is empty.)
        Raises UserError, which names the string, for anything that timm does not define or would ignore.
        """
        head, *sections = text.split("-")
        if head != "rand":
            raise UserError(f"rand_augment is {text!r}, which does not start with rand: {_SYNTAX}")
        values: dict[str, int | float] = {}
        for section in sections:
            key, value = _read_section(text, section)
            if key in values:
                raise UserError(f"rand_augment is {text!r}: {key} is given twice; keep one of them")
            values[key] = value
        noise = values.get("mstd", 0.0)
        return cls(
            magnitude=int(values.get("m", FULL)),
            layers=int(values.get("n", 2)),
            prob=values.get("p", 0.5),
            magnitude_std=math.inf if noise > _UNIFORM_ABOVE else noise,
            magnitude_max=float(values.get("mmax", FULL)),
            operations=INCREASING if values.get("inc", 0) else PLAIN,
            fill=tuple(mean_fill),
            filters=filters_of(interpolation),
        )

    def draw(self, rng: np.random.Generator) -> list[Operation]:
        """The operations for one image, in order; without those that are skipped with probability 1 - `prob`."""
        names = [self.operations[i] for i in rng.integers(0, len(self.operations), size=self.layers)]
        return [self._draw_one(rng, name) for name in names if rng.random() < self.prob]

    def _draw_one(self, rng: np.random.Generator, name: str) -> Operation:
        definition = OPERATIONS[name]
        magnitude = float(self.magnitude)
        if math.isinf(self.magnitude_std):
            magnitude = rng.uniform(0, magnitude)
        elif self.magnitude_std > 0:
            magnitude = rng.normal(magnitude, self.magnitude_std)
        magnitude = min(max(0.0, magnitude), self.magnitude_max)
        sign = -1 if definition.signed and rng.random() < 0.5 else 1
        resample = self.filters[int(rng.integers(len(self.filters)))] if definition.geometric else None
        return Operation(name, magnitude, definition.argument(magnitude, sign), resample)

    def apply(self, pixels: np.ndarray, operations: list[Operation]) -> np.ndarray:
        """Applies `operations` to an image (C, H, W) uint8, RGB or grey; returns a new image of the same shape."""
        for operation in operations:
            definition, extra = OPERATIONS[operation.name], {}
            if definition.geometric:
                extra = {"bicubic": operation.resample == "bicubic", "fill": self.fill}
            pixels = definition.apply(pixels, *operation.argument, **extra)
        return pixels

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.apply(pixels, self.draw(rng))

    def __str__(self) -> str:
        spread = "uniform from 0 to" if math.isinf(self.magnitude_std) else f"normal (deviation {self.magnitude_std:g}) about"
        return (
            f"RandAugment: {self.layers} of {len(self.operations)} operations, each at probability {self.prob:g}, "
            f"magnitude {spread} {self.magnitude} up to {self.magnitude_max:g}"
        )


def filters_of(interpolation: str) -> tuple[str, ...]:
    """The possible filters: one for `bicubic` and `bilinear`, both for `random`.

    Raises:
        UserError: for another name.
    """
    if interpolation == RANDOM:
        return FILTERS
    if interpolation not in FILTERS:
        raise UserError(f"interpolation is {interpolation!r}: choose one of {', '.join(FILTERS)}, {RANDOM}")
    return (interpolation,)


_NUMBER = {"m": r"\d+", "n": r"\d+", "p": r"\d*\.?\d+", "mstd": r"\d*\.?\d+", "mmax": r"\d+", "inc": r"[01]"}
_WANTED = {
    "m": "a whole number", "n": "a whole number from 1", "p": "a probability from 0 to 1", "mstd": "a number such as 0.5",
    "mmax": "a whole number from 1", "inc": "0 or 1",
}  # fmt: skip


def _read_section(text: str, section: str) -> tuple[str, int | float]:
    key = re.match(r"[a-z]*", section).group()
    number = section[len(key) :]
    if section.startswith(("w", "t")):
        raise UserError(f"rand_augment is {text!r}: weighted sets of operations ({section}) are not offered; {_SYNTAX}")
    if key not in _NUMBER:
        raise UserError(f"rand_augment is {text!r}: {section!r} is not known; {_SYNTAX}")
    value = float(number) if re.fullmatch(_NUMBER[key], number) else math.nan
    smallest = 1 if key in ("n", "mmax") else 0
    largest = 1 if key in ("p", "inc") else math.inf
    if not smallest <= value <= largest:
        raise UserError(f"rand_augment is {text!r}: {key} wants {_WANTED[key]}, not {number!r}; {_SYNTAX}")
    return key, value
