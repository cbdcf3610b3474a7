"""RandAugment (arXiv 1909.13719) by timm's definition and string syntax, such as `rand-m9-mstd0.5-inc1`.

A draw (which operations, with which arguments) is made without an image, so that its distribution can be tested by itself. The
operations are Pillow's to the bit (`cswin.data.images.kernels`). Magnitudes live on a scale where 10 is an operation's full strength.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cswin.data.images.kernels import affine, blend, histograms, look_up, luma, rotate, smooth
from cswin.data.images.preprocessing import FILTERS
from cswin.errors import UserError

FULL = 10.0
_UNIFORM_ABOVE = 100.0
_SYNTAX = (
    "write rand-m9-mstd0.5-inc1, with any of m (magnitude), n (operations), p (probability of each), mstd (noise of the "
    "magnitude; above 100: uniform from 0), mmax (largest magnitude), inc (1: all operations grow with the magnitude)"
)
RANDOM = "random"

Fill = tuple[int, ...]
Argument = Callable[[float, int], tuple[float, ...]]
Apply = Callable[..., np.ndarray]


# Arguments: functions of the magnitude and, for the operations that go both ways, of a sign.


def _no_argument(magnitude: float, sign: int) -> tuple[float, ...]:
    return ()


def _symmetric(full: float, magnitude: float, sign: int) -> tuple[float, ...]:
    return (sign * (magnitude / FULL * full),)


def _rotate_argument(magnitude: float, sign: int) -> tuple[float, ...]:
    return _symmetric(30.0, magnitude, sign)


def _shear_argument(magnitude: float, sign: int) -> tuple[float, ...]:
    return _symmetric(0.3, magnitude, sign)


def _translate_argument(magnitude: float, sign: int) -> tuple[float, ...]:
    return _symmetric(0.45, magnitude, sign)


def _enhance_argument(magnitude: float, sign: int) -> tuple[float, ...]:
    return (magnitude / FULL * 1.8 + 0.1,)


def _enhance_increasing_argument(magnitude: float, sign: int) -> tuple[float, ...]:
    return (max(0.1, 1.0 + sign * (magnitude / FULL * 0.9)),)


def _posterize_argument(magnitude: float, sign: int) -> tuple[float, ...]:
    return (int(magnitude / FULL * 4),)


def _posterize_increasing_argument(magnitude: float, sign: int) -> tuple[float, ...]:
    return (4 - int(magnitude / FULL * 4),)


def _solarize_argument(magnitude: float, sign: int) -> tuple[float, ...]:
    return (int(magnitude / FULL * 256),)


def _solarize_increasing_argument(magnitude: float, sign: int) -> tuple[float, ...]:
    return (256 - int(magnitude / FULL * 256),)


def _solarize_add_argument(magnitude: float, sign: int) -> tuple[float, ...]:
    return (int(magnitude / FULL * 110),)


# Operations on an image (C, H, W) uint8, which they leave alone; C is 3 (RGB) or 1 (grey).

_VALUES = np.arange(256)


def _mapped(pixels: np.ndarray, *tables: Sequence[int] | np.ndarray) -> np.ndarray:
    """Each value looked up: in the one table, or in the table of its channel."""
    return look_up(pixels, np.broadcast_to(np.array(tables, np.uint8), (len(pixels), 256)).copy())


def _autocontrast(pixels: np.ndarray) -> np.ndarray:
    """Stretches each channel's values to 0 .. 255."""
    return _mapped(pixels, *(_stretched(np.flatnonzero(counts)) for counts in histograms(pixels)))


def _stretched(found: np.ndarray) -> np.ndarray:
    low, high = int(found[0]), int(found[-1])
    if low == high:
        return _VALUES
    scale = 255.0 / (high - low)
    return np.clip((_VALUES * scale + -low * scale).astype(np.int64), 0, 255)


def _equalize(pixels: np.ndarray) -> np.ndarray:
    """Spreads each channel's values so that all are about equally frequent."""
    return _mapped(pixels, *(_equalized(counts) for counts in histograms(pixels)))


def _equalized(counts: np.ndarray) -> np.ndarray:
    last = counts[np.flatnonzero(counts)[-1]]
    step = int(counts.sum() - last) // 255
    if step == 0:
        return _VALUES
    return np.minimum((step // 2 + np.cumsum(counts) - counts) // step, 255)


def _invert(pixels: np.ndarray) -> np.ndarray:
    return _mapped(pixels, 255 - _VALUES)


def _posterize(pixels: np.ndarray, bits: float) -> np.ndarray:
    """Keeps the upper bits; at least 1, because Pillow refuses 0, which the definition asks for at full magnitude (there: black)."""
    return _mapped(pixels, _VALUES & -(1 << (8 - min(max(1, int(bits)), 8))))


def _solarize(pixels: np.ndarray, threshold: float) -> np.ndarray:
    return _mapped(pixels, np.where(threshold > _VALUES, _VALUES, 255 - _VALUES))


def _solarize_add(pixels: np.ndarray, add: float) -> np.ndarray:
    """Adds `add` to the values below 128, up to 255."""
    return _mapped(pixels, np.where(_VALUES < 128, np.minimum(_VALUES + int(add), 255), _VALUES))


def _colour(pixels: np.ndarray, factor: float) -> np.ndarray:
    return blend(luma(pixels), pixels, factor)


def _contrast(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Away from the image's mean grey, or towards it."""
    counts = histograms(luma(pixels))[0]
    return _from_one_value(pixels, int(float(counts @ _VALUES) / int(counts.sum()) + 0.5), factor)


def _brightness(pixels: np.ndarray, factor: float) -> np.ndarray:
    return _from_one_value(pixels, 0, factor)


def _from_one_value(pixels: np.ndarray, base: int, factor: float) -> np.ndarray:
    values = np.arange(256, dtype=np.uint8).reshape(1, 1, 256)
    return _mapped(pixels, blend(np.full_like(values, base), values, factor)[0, 0])


def _sharpness(pixels: np.ndarray, factor: float) -> np.ndarray:
    return blend(smooth(pixels), pixels, factor)


def _rotate(pixels: np.ndarray, degrees: float, *, bicubic: bool, fill: Fill) -> np.ndarray:
    return rotate(pixels, degrees, fill, bicubic=bicubic)


def _shear_x(pixels: np.ndarray, factor: float, *, bicubic: bool, fill: Fill) -> np.ndarray:
    return affine(pixels, (1, factor, 0, 0, 1, 0), fill, bicubic=bicubic)


def _shear_y(pixels: np.ndarray, factor: float, *, bicubic: bool, fill: Fill) -> np.ndarray:
    return affine(pixels, (1, 0, 0, factor, 1, 0), fill, bicubic=bicubic)


def _translate_x(pixels: np.ndarray, share: float, *, bicubic: bool, fill: Fill) -> np.ndarray:
    return affine(pixels, (1, 0, share * pixels.shape[2], 0, 1, 0), fill, bicubic=bicubic)


def _translate_y(pixels: np.ndarray, share: float, *, bicubic: bool, fill: Fill) -> np.ndarray:
    return affine(pixels, (1, 0, 0, 0, 1, share * pixels.shape[1]), fill, bicubic=bicubic)


@dataclass(frozen=True)
class Definition:
    """What an operation does, how its argument follows from the magnitude, and what else it draws."""

    apply: Apply
    argument: Argument = _no_argument
    signed: bool = False
    geometric: bool = False


OPERATIONS: dict[str, Definition] = {
    "AutoContrast": Definition(_autocontrast),
    "Equalize": Definition(_equalize),
    "Invert": Definition(_invert),
    "Rotate": Definition(_rotate, _rotate_argument, signed=True, geometric=True),
    "Posterize": Definition(_posterize, _posterize_argument),
    "PosterizeIncreasing": Definition(_posterize, _posterize_increasing_argument),
    "Solarize": Definition(_solarize, _solarize_argument),
    "SolarizeIncreasing": Definition(_solarize, _solarize_increasing_argument),
    "SolarizeAdd": Definition(_solarize_add, _solarize_add_argument),
    "Color": Definition(_colour, _enhance_argument),
    "ColorIncreasing": Definition(_colour, _enhance_increasing_argument, signed=True),
    "Contrast": Definition(_contrast, _enhance_argument),
    "ContrastIncreasing": Definition(_contrast, _enhance_increasing_argument, signed=True),
    "Brightness": Definition(_brightness, _enhance_argument),
    "BrightnessIncreasing": Definition(_brightness, _enhance_increasing_argument, signed=True),
    "Sharpness": Definition(_sharpness, _enhance_argument),
    "SharpnessIncreasing": Definition(_sharpness, _enhance_increasing_argument, signed=True),
    "ShearX": Definition(_shear_x, _shear_argument, signed=True, geometric=True),
    "ShearY": Definition(_shear_y, _shear_argument, signed=True, geometric=True),
    "TranslateXRel": Definition(_translate_x, _translate_argument, signed=True, geometric=True),
    "TranslateYRel": Definition(_translate_y, _translate_argument, signed=True, geometric=True),
}

INCREASING = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd",
    "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing",
    "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
)  # fmt: skip
PLAIN = tuple(name.removesuffix("Increasing") for name in INCREASING)


@dataclass(frozen=True)
class Operation:
    """One drawn operation: its name, the magnitude after noise and clipping, its argument, and the filter of geometric ones."""

    name: str
    magnitude: float
    argument: tuple[float, ...] = ()
    resample: str | None = None


@dataclass(frozen=True)
class RandAugment:
    """Draws `layers` operations with replacement, each carried out with probability `prob`, and applies them in order.

    The magnitude of each is N(magnitude, magnitude_std), or uniform from 0 to `magnitude` where the deviation is infinite,
    clipped to 0 .. `magnitude_max`. `fill` is the colour (RGB, or one grey value) that moves in from outside of the image.
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

        `inc0` means what it says. (timm reads it as `inc1`, because it asks whether the text "0" is empty.)
        Raises UserError, naming the string, for anything that timm does not define or would pass over in silence.
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
        """The operations for one image, in order; those that the coin leaves out are not listed."""
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
        """Carries out `operations` on an image (C, H, W) uint8, RGB or grey, and returns a new one; the shape stays."""
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
    """The filters that are drawn from: one for `bicubic` and `bilinear`, both for `random`.

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
