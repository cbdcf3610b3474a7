"""RandAugment's operations: their arguments as functions of the magnitude, and the pixels (bit-identical to Pillow)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cswin.data.images.affine import affine, rotate
from cswin.data.images.kernels import blend, histograms, look_up, luma, smooth

FULL = 10.0  # the magnitude of full strength

Fill = tuple[int, ...]
Argument = Callable[[float, int], tuple[float, ...]]
Apply = Callable[..., np.ndarray]


# Arguments: functions of the magnitude and, for operations in two directions, of a sign.


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


# Operations on an image (C, H, W) uint8, which they do not change; C is 3 (RGB) or 1 (grey).

_VALUES = np.arange(256)


def _mapped(pixels: np.ndarray, *tables: Sequence[int] | np.ndarray) -> np.ndarray:
    """Each value replaced by that of a table: a common one, or the one of its channel."""
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
    """Equalises the histogram of each channel."""
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
    """Keeps the upper bits, from 0 (black: so did Pillow when timm 0.3.4 was in use; Pillow 13 refuses 0) to 8."""
    return _mapped(pixels, _VALUES & -(1 << (8 - min(max(0, int(bits)), 8))))


def _solarize(pixels: np.ndarray, threshold: float) -> np.ndarray:
    return _mapped(pixels, np.where(threshold > _VALUES, _VALUES, 255 - _VALUES))


def _solarize_add(pixels: np.ndarray, add: float) -> np.ndarray:
    """Adds `add` to the values below 128, up to 255."""
    return _mapped(pixels, np.where(_VALUES < 128, np.minimum(_VALUES + int(add), 255), _VALUES))


def _colour(pixels: np.ndarray, factor: float) -> np.ndarray:
    return blend(luma(pixels), pixels, factor)


def _contrast(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Changes the contrast about the image's mean grey."""
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
    """An operation: its function, its argument as a function of the magnitude, and its further random values."""

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
