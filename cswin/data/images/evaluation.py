"""Evaluation pipeline from an image file to the network's input. EXIF orientation is ignored, as in published ImageNet figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cswin.data.images import kernels
from cswin.data.images.decode import EncodedImage
from cswin.data.images.preprocessing import Preprocessing
from cswin.data.images.resample import CropBox, resize
from cswin.errors import UserError

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, the weights of Pillow's conversion from RGB to L


class Normalise:
    """(value / 255 - mean) / std, as one multiplication and one addition.

    `mean` and `std` have one value per channel, for values in [0, 1]. Three values are also valid for greyscale: they are weighted
    as Pillow weights red, green and blue (exact for the mean; for the deviation if the three vary together).
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels: int) -> None:
        mean, std = (_per_channel(name, values, channels) for name, values in (("mean", mean), ("std", std)))
        if std.min() <= 0:
            raise UserError(f"std is {std.tolist()}: every value must be above 0")
        self.fill = tuple(min(255, round(255 * value)) for value in mean.tolist())
        self.factor = (1 / (255 * std)).astype(np.float32)
        self.offset = (-mean / std).astype(np.float32)

    def __call__(self, pixels: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """(C, H, W) float32, contiguous, from (C, H, W) uint8; written to `out` if given."""
        if out is None:
            out = np.empty(pixels.shape, np.float32)
        kernels.normalise(pixels, self.factor, self.offset, out)
        return out


def _per_channel(name: str, values: Sequence[float], channels: int) -> np.ndarray:
    if len(values) == 3 and channels == 1:
        values = [float(np.dot(LUMA, values))]
    if len(values) != channels:
        raise UserError(f"{name} has {len(values)} values for {channels} channels: give {channels}")
    return np.array(values, dtype=np.float64)


def image_mode(channels: int) -> str:
    """Pillow's mode for 8-bit images with this number of channels.

    Raises:
        UserError: unless they are 1 or 3.
    """
    if channels not in (1, 3):
        raise UserError(f"in_channels is {channels}: images have 1 (greyscale) or 3 (RGB)")
    return "L" if channels == 1 else "RGB"


class EvalTransform:
    """The evaluation pipeline: shorter side to int(size / crop_ratio), centre crop, normalisation.

    Rounding is that of torchvision's Resize and CenterCrop. The file is always decoded in full, so figures are comparable.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.size, self.mode = preprocessing.image_size, image_mode(preprocessing.channels)
        self.bicubic = preprocessing.interpolation == "bicubic"
        self.short_side = int(self.size / preprocessing.crop_ratio)
        self.normalise = Normalise(preprocessing.mean, preprocessing.std, preprocessing.channels)

    def __call__(self, data: bytes) -> np.ndarray:
        """The file content `data` as (channels, size, size) float32. Raises BadImage."""
        return self.normalise(self.pixels(data))

    def pixels(self, data: bytes) -> np.ndarray:
        """The same before normalisation, uint8. Raises BadImage."""
        return self.resize_crop(EncodedImage(data).frame(self.mode))

    def resize_crop(self, frame: np.ndarray) -> np.ndarray:
        """The central crop, (channels, size, size) uint8, of an image (H, W, channels) uint8."""
        height, width = frame.shape[:2]
        short = self.short_side
        if width <= height:
            width, height = short, int(short * height / width)
        else:
            width, height = int(short * width / height), short
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return resize(frame, (width, height), bicubic=self.bicubic, window=CropBox(left, top, self.size, self.size))

    def __str__(self) -> str:
        return f"resize the shorter side to {self.short_side}; crop the centre, {self.size} x {self.size}; normalise"
