"""Resizing of 8-bit images by antialiased bicubic or bilinear filters, bit-identical to Pillow, with crop and flip in one pass.

Output pixel i of n depends on the input about c = start + (i + 0.5) s, where s = (stop - start) / n, with a filter that is
stretched by max(s, 1): weights f((j + 0.5 - c) / max(s, 1)), divided by their sum, rounded to 22 binary digits after the point.
Bicubic is the Keys filter with a = -0.5, bilinear the triangle. First along the rows, then along the columns, each pass rounded to
8 bits. That is Pillow's definition (its Resample.c) up to version 12. Version 13 processes the columns first if an image shrinks
much more in height than in width, which rounds differently. Here the rows always come first.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import float32, float64, int32

from cswin.compiled import compiled

DIGITS = 22
_HALF = 1 << (DIGITS - 1)
_BAND = 48  # rows in one step of the first pass; 32 and 64 are slower because of cache conflicts
_UNROLLED = 4  # the weights of an output pixel are padded with zeros to a multiple of this


class CropBox(NamedTuple):
    """A rectangle in pixels."""

    left: int
    top: int
    width: int
    height: int


def resize(
    image: np.ndarray,
    size: tuple[int, int],
    *,
    bicubic: bool,
    region: tuple[float, float, float, float] | None = None,
    window: CropBox | None = None,
    mirrored: bool = False,
) -> np.ndarray:
    """`image` (H, W, C) uint8, contiguous, in another size (width, height): (C, height, width) uint8.

    Args:
        region: left, top, right, bottom of what is resized, not necessarily whole pixels (rounded to float32, as Pillow does); the
            filter sees beyond it. All of the image by default.
        window: the part of the result that is wanted; all by default.
        mirrored: whether left and right change places in what is returned.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = (float(np.float32(edge)) for edge in region or (0, 0, width, height))
    window = window or CropBox(0, 0, *size)
    across = _weights(width, (left, right), size[0], (window.left, window.width), bicubic)
    down = _weights(height, (top, bottom), size[1], (window.top, window.height), bicubic)
    return _resize(image, (0, 0, width, height), across, down, mirrored)


def resize_crop(
    image: np.ndarray, crop: CropBox, size: tuple[int, int], *, bicubic: bool, mirrored: bool = False
) -> np.ndarray:
    """The part `crop` as `resize` makes it from an image that holds nothing else: the filter sees nothing beyond it."""
    across = _weights(crop.width, (0.0, float(crop.width)), size[0], (0, size[0]), bicubic)
    down = _weights(crop.height, (0.0, float(crop.height)), size[1], (0, size[1]), bicubic)
    return _resize(image, tuple(crop), across, down, mirrored)


@compiled
def _weights(length, edges, size, window, bicubic):
    """For outputs first .. first + count - 1 of `size`: the first input of each, and its weights (count, taps) int32."""
    (start, stop), (first, count) = edges, window
    scale = float64(float32(stop - start)) / size
    stretch = max(scale, 1.0)
    reach = (2.0 if bicubic else 1.0) * stretch
    taps = (2 * int(math.ceil(reach)) + _UNROLLED) // _UNROLLED * _UNROLLED
    starts, weights, exact = np.empty(count, np.int64), np.zeros((count, taps), np.int32), np.empty(taps)
    for i in range(count):
        centre = start + (first + i + 0.5) * scale
        low, high = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), length)
        total = 0.0
        for k in range(high - low):
            x = abs((k + low - centre + 0.5) * (1.0 / stretch))
            if not bicubic:
                exact[k] = 1.0 - x if x < 1.0 else 0.0
            elif x < 1.0:
                exact[k] = (1.5 * x - 2.5) * x * x + 1.0
            else:
                exact[k] = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5 if x < 2.0 else 0.0
            total += exact[k]
        for k in range(high - low):
            weight = exact[k] / total * (1 << DIGITS)
            weights[i, k] = int(weight - 0.5) if weight < 0 else int(weight + 0.5)
        starts[i] = low
    return starts, weights


@compiled
def _turn(image, left, top, width, last, band):
    """Rows top .. top + _BAND - 1, none below `last`, as columns: band[c, x, row]."""
    for r in range(_BAND):
        row = image[min(top + r, last)]
        if image.shape[2] == 3:
            for x in range(width):
                band[0, x, r] = row[left + x, 0]
                band[1, x, r] = row[left + x, 1]
                band[2, x, r] = row[left + x, 2]
        else:
            for x in range(width):
                for c in range(image.shape[2]):
                    band[c, x, r] = row[left + x, c]


@compiled
def _turn_back(done, mirrored, rows):
    width = len(done)
    for r in range(_BAND):
        row = rows[r]
        if mirrored:
            for x in range(width):
                row[width - 1 - x] = done[x, r]
        else:
            for x in range(width):
                row[x] = done[x, r]


@compiled
def _filter(inputs, starts, weights, results):
    """results[i] = sum of weights[i, k] inputs[starts[i] + k] over k, in 8 bits; all values along the other axis at once."""
    length = results.shape[1]
    sums = np.empty(length, np.int32)
    for i in range(len(starts)):
        for x in range(length):
            sums[x] = _HALF
        for k in range(0, weights.shape[1], 4):
            j = starts[i] + k
            w0, w1, w2, w3 = weights[i, k], weights[i, k + 1], weights[i, k + 2], weights[i, k + 3]
            v0, v1, v2, v3 = inputs[j], inputs[j + 1], inputs[j + 2], inputs[j + 3]
            for x in range(length):
                sums[x] += int32(w0 * v0[x]) + int32(w1 * v1[x]) + int32(w2 * v2[x]) + int32(w3 * v3[x])
        result = results[i]
        for x in range(length):
            result[x] = min(max(sums[x] >> DIGITS, 0), 255)


@compiled
def _resize(image, crop, across, down, mirrored):
    """Both passes. Weights of zero may read memory behind the end of the crop; it exists, and its content does not matter."""
    channels, (left, top, width, height) = image.shape[2], crop
    (x_starts, x_weights), (y_starts, y_weights) = across, down
    columns, x_taps = x_weights.shape
    rows, y_taps = y_weights.shape
    x0, y0 = x_starts[0], y_starts[0]
    x1, y1 = min(x_starts[-1] + x_taps, width), min(y_starts[-1] + y_taps, height)
    band = np.empty((channels, x1 - x0 + x_taps, _BAND), np.uint8)
    done = np.empty((columns, _BAND), np.uint8)
    middle = np.empty((channels, (y1 - y0 + _BAND - 1) // _BAND * _BAND + y_taps, columns), np.uint8)
    for y in range(0, y1 - y0, _BAND):
        _turn(image, left + x0, top + y0 + y, x1 - x0, top + y1 - 1, band)
        for c in range(channels):
            _filter(band[c], x_starts - x0, x_weights, done)
            _turn_back(done, mirrored, middle[c, y : y + _BAND])
    result = np.empty((channels, rows, columns), np.uint8)
    for c in range(channels):
        _filter(middle[c], y_starts - y0, y_weights, result[c])
    return result
