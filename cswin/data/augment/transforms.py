"""Training pipeline from an image file to the network's input: decode, crop, flip, augment, normalise, erase.

All steps before normalisation use 8-bit images. EXIF orientation is ignored, as in every published ImageNet figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cswin.data.augment.erasing import Patch, RandomErasing, paste
from cswin.data.augment.operations import OPERATIONS
from cswin.data.augment.randaugment import Operation, RandAugment, filters_of
from cswin.data.images import kernels
from cswin.data.images.decode import EncodedImage
from cswin.data.images.evaluation import Normalise, image_mode
from cswin.data.images.preprocessing import FILTERS, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from cswin.data.images.resample import CropBox, resize, resize_crop
from cswin.errors import UserError

if TYPE_CHECKING:
    from cswin.config.settings import Augment

_TRIES = 10
# A JPEG may be decoded at 1/2, 1/4 or 1/8 as long as the crop still has this many times the pixels of the result on each side.
# At 2 a photograph differs from the full decode by about 1 of 255 levels on average (tests/data/test_transforms.py bounds it); at 1
# by 2 to 4, and edges by 20 and more.
_DCT_RESERVE = 2
_DCT_SCALES = (8, 4, 2)


class RandomResizedCrop:
    """The random resized crop of torchvision: a crop of random area and aspect ratio, resized to a square.

    The area is a uniform share of the image, in the range `scale`; the aspect ratio (width / height) is log-uniform in the
    range `ratio`; the position is uniform. A crop that does not fit is drawn again; after ten tries the largest central crop
    with an allowed aspect ratio is used.
    """

    def __init__(self, scale: Sequence[float] = (0.08, 1.0), ratio: Sequence[float] = (3 / 4, 4 / 3)) -> None:
        for name, (low, high), limit in (("scale", scale, 1.0), ("ratio", ratio, math.inf)):
            if not 0 < low <= high <= limit:
                raise UserError(
                    f"{name} is [{low}, {high}]: give two numbers, 0 < from <= to" + (" <= 1" if limit == 1 else "")
                )
        self.scale, self.ratio = tuple(scale), tuple(ratio)
        self.log_ratio = tuple(math.log(value) for value in ratio)

    def draw(self, rng: np.random.Generator, width: int, height: int) -> CropBox:
        """The crop of an image of `width` x `height` pixels."""
        for _ in range(_TRIES):
            area = rng.uniform(*self.scale) * width * height
            aspect = math.exp(rng.uniform(*self.log_ratio))
            crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = int(rng.integers(0, height - crop_height, endpoint=True))
                left = int(rng.integers(0, width - crop_width, endpoint=True))
                return CropBox(left, top, crop_width, crop_height)
        return self.central(width, height)

    def central(self, width: int, height: int) -> CropBox:
        """The largest central crop with an allowed aspect ratio."""
        low, high = self.ratio
        crop_width, crop_height = width, height
        if width / height < low:
            crop_height = round(width / low)
        elif width / height > high:
            crop_width = round(height * high)
        return CropBox((width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height)

    def __str__(self) -> str:
        return "crop {:g} to {:g} of the area at aspect ratio {:.4g} to {:.4g}".format(*self.scale, *self.ratio)


def dct_scale(box: CropBox, size: int) -> int:
    """The factor (1, 2, 4 or 8) by which a JPEG may be shrunk in decoding, so that `box` still has enough pixels for `size`."""
    return next((s for s in _DCT_SCALES if min(box.width, box.height) >= _DCT_RESERVE * s * size), 1)


def resize_shrunk(
    frame: np.ndarray, box: CropBox, size: int, *, bicubic: bool, shrunk: int, mirrored: bool = False
) -> np.ndarray:
    """The part `box` (in pixels of the original) as (C, size, size), from an image (H, W, C) that was decoded at 1/`shrunk`."""
    left, top, right, bottom = box.left, box.top, box.left + box.width, box.top + box.height
    region = (left / shrunk, top / shrunk, right / shrunk, bottom / shrunk)
    return resize(frame, (size, size), bicubic=bicubic, region=region, mirrored=mirrored)


class Drawn(NamedTuple):
    """An augmented training image before normalisation: (C, H, W) uint8, and the patches of random erasing."""

    pixels: np.ndarray
    patches: list[Patch]


class TrainTransform:
    """The training pipeline: random resized crop, horizontal flip, RandAugment, normalisation, random erasing.

    Large JPEGs are decoded at 1/2, 1/4 or 1/8 if the crop has enough pixels. If the interpolation is `random`, a filter is
    drawn for each crop and for each geometric operation of RandAugment.

    Args:
        preprocessing: side of the result (pixels), channels (grey images are converted before the crop), mean and deviation.
        augment: the recipe.
    """

    def __init__(self, preprocessing: Preprocessing, augment: Augment) -> None:
        if not 0 <= augment.hflip <= 1:
            raise UserError(f"hflip is {augment.hflip}: give a probability from 0 to 1")
        self.size, self.mode, self.hflip = preprocessing.image_size, image_mode(preprocessing.channels), augment.hflip
        self.filters = filters_of(augment.interpolation)
        self.crop = RandomResizedCrop(augment.scale, augment.ratio)
        self.normalise = Normalise(preprocessing.mean, preprocessing.std, preprocessing.channels)
        self.augment = None
        if augment.rand_augment:
            self.augment = RandAugment.parse(
                augment.rand_augment, mean_fill=self.normalise.fill, interpolation=augment.interpolation
            )
        self.erase = RandomErasing(augment.erase_prob, augment.erase_mode, augment.erase_count)

    def __call__(self, data: bytes, rng: np.random.Generator) -> np.ndarray:
        """The file `data`, augmented by the numbers of `rng`: (channels, size, size) float32. Raises BadImage."""
        return self.finish(self.draw(data, rng))

    def draw(self, data: bytes, rng: np.random.Generator) -> Drawn:
        """All slow or random steps. The result can be passed between processes quickly. Raises BadImage."""
        pixels = self.decode_crop(data, rng)
        if self.augment is not None:
            pixels = self.augment(pixels, rng)
        return Drawn(pixels, self.erase.patches(rng, *pixels.shape))

    def finish(self, drawn: Drawn, out: np.ndarray | None = None) -> np.ndarray:
        """Normalisation and erasing; the result is written to `out` (channels, size, size) float32 if given, and returned."""
        return paste(self.normalise(drawn.pixels, out), drawn.patches)

    def decode_crop(self, data: bytes, rng: np.random.Generator) -> np.ndarray:
        """The drawn crop, flipped with probability `hflip`: (channels, size, size) uint8. Raises BadImage."""
        image = EncodedImage(data)
        box, bicubic = self.crop.draw(rng, *image.size), self.draw_filter(rng) == "bicubic"
        return self.crop_resize(image, box, bicubic=bicubic, mirrored=rng.random() < self.hflip)

    def draw_filter(self, rng: np.random.Generator) -> str:
        """The filter of the crop; no random number is drawn if there is only one."""
        return self.filters[int(rng.integers(len(self.filters)))] if len(self.filters) > 1 else self.filters[0]

    def crop_resize(self, image: EncodedImage, box: CropBox, *, bicubic: bool, mirrored: bool) -> np.ndarray:
        """The part `box` of an image, decoded at a reduced scale if allowed: (channels, size, size) uint8."""
        shrunk = dct_scale(box, self.size) if image.is_jpeg else 1
        frame = image.frame(self.mode, shrunk)
        if shrunk > 1:
            return resize_shrunk(frame, box, self.size, bicubic=bicubic, shrunk=shrunk, mirrored=mirrored)
        # The crop as an image of its own: the filter must not see beyond it, as torchvision's does not.
        return resize_crop(frame, box, (self.size, self.size), bicubic=bicubic, mirrored=mirrored)

    def __str__(self) -> str:
        steps = [
            str(self.crop),
            f"resize to {self.size} x {self.size} ({' or '.join(self.filters)})",
            f"flip at probability {self.hflip:g}",
        ]
        steps += [str(self.augment)] if self.augment else []
        return "; ".join([*steps, "normalise", str(self.erase)])


def compile_kernels() -> None:
    """Loads or compiles every kernel before processes are forked from this one."""
    pixels = resize(np.zeros((2, 2, 3), np.uint8), (2, 2), bicubic=True)
    augment = RandAugment()
    for name, definition in OPERATIONS.items():
        augment.apply(pixels, [Operation(name, 1.0, definition.argument(1.0, 1), FILTERS[0] if definition.geometric else None)])
    Normalise(IMAGENET_MEAN, IMAGENET_STD, 3)(pixels)
    kernels.mix_rounded(pixels, pixels.copy(), 0.5, 0.5)
