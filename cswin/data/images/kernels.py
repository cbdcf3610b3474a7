"""Tables, colour and arithmetic on contiguous 8-bit images (C, H, W) uint8, bit-identical to Pillow's."""

from __future__ import annotations

import numpy as np
from numba import float32, int32

from cswin.compiled import compiled


@compiled
def look_up(pixels, tables):
    """tables[c, value] (C, 256) uint8 for each value of channel c."""
    channels, height, width = pixels.shape
    result = np.empty((channels, height, width), np.uint8)
    for c in range(channels):
        table = tables[c]
        for y in range(height):
            row, out = pixels[c, y], result[c, y]
            for x in range(width):
                out[x] = table[row[x]]
    return result


@compiled
def histograms(pixels):
    """How often each value occurs: (C, 256) int64."""
    channels, height, width = pixels.shape
    # Two counters alternate: an addition to a counter that was just written has to wait.
    counts, others = np.zeros((channels, 256), np.int64), np.zeros(256, np.int64)
    for c in range(channels):
        count = counts[c]
        others[:] = 0
        for y in range(height):
            row = pixels[c, y]
            for x in range(0, width - 1, 2):
                count[row[x]] += 1
                others[row[x + 1]] += 1
            if width % 2:
                count[row[width - 1]] += 1
        for value in range(256):
            count[value] += others[value]
    return counts


def luma(pixels: np.ndarray) -> np.ndarray:
    """Grey (1, H, W): 0.299 red + 0.587 green + 0.114 blue as 16-bit fractions, rounded; a single channel is returned unchanged."""
    return pixels if len(pixels) == 1 else _luma(pixels)


@compiled
def _luma(pixels):
    _, height, width = pixels.shape
    result = np.empty((1, height, width), np.uint8)
    for y in range(height):
        red, green, blue, out = pixels[0, y], pixels[1, y], pixels[2, y], result[0, y]
        for x in range(width):
            out[x] = (int32(19595 * red[x]) + int32(38470 * green[x]) + int32(7471 * blue[x]) + 32768) >> 16
    return result


@compiled
def smooth(pixels):
    """The mean of 3 x 3 pixels with weight 5 for the middle one, rounded; border pixels are unchanged."""
    channels, height, width = pixels.shape
    result = pixels.copy()
    for c in range(channels):
        for y in range(1, height - 1):
            above, row, below, out = pixels[c, y - 1], pixels[c, y], pixels[c, y + 1], result[c, y, 1:]
            a0, a1, a2, r0, r1, r2, b0, b1, b2 = (
                above, above[1:], above[2:], row, row[1:], row[2:], below, below[1:], below[2:],
            )  # fmt: skip
            for x in range(width - 2):
                total = int32(a0[x] + a1[x] + a2[x] + r0[x] + 5 * r1[x] + r2[x] + b0[x] + b1[x] + b2[x])
                out[x] = (2 * total + 13) // 26
    return result


@compiled
def blend(base, pixels, factor):
    """base + factor (pixels - base) in float32, truncated to 8 bits; `base` has as many channels as `pixels`, or one."""
    channels, height, width = pixels.shape
    result = np.empty((channels, height, width), np.uint8)
    factor = float32(factor)
    for c in range(channels):
        for y in range(height):
            under, row, out = base[c if len(base) > 1 else 0, y], pixels[c, y], result[c, y]
            for x in range(width):
                value = float32(under[x]) + factor * (float32(row[x]) - float32(under[x]))
                out[x] = int32(min(max(value, float32(0)), float32(255)))
    return result


@compiled
def normalise(pixels, factor, offset, out):
    """pixels * factor + offset, both (C,) float32, into `out` (C, H, W) float32."""
    channels, height, width = pixels.shape
    for c in range(channels):
        for y in range(height):
            row, result = pixels[c, y], out[c, y]
            for x in range(width):
                result[x] = float32(row[x]) * factor[c] + offset[c]


@compiled
def mix_rounded(image, partner, own, other):
    """image = own * image + other * partner in float32, rounded to whole numbers, halves to even; all (C, H, W) uint8."""
    channels, height, width = image.shape
    own, other = float32(own), float32(other)
    for c in range(channels):
        for y in range(height):
            row, second = image[c, y], partner[c, y]
            for x in range(width):
                # A sum with 1.5 x 2^23 has no digits after the point, so it is rounded.
                value = float32(row[x]) * own + float32(second[x]) * other
                row[x] = int32((value + float32(12582912.0)) - float32(12582912.0))
