"""Affine transforms of contiguous 8-bit images (C, H, W) uint8, bit-identical to Pillow's. Each returns a new image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numba import float64, int32, uint32

from cswin.compiled import compiled


def affine(pixels: np.ndarray, matrix: Sequence[float], fill: Sequence[int], *, bicubic: bool) -> np.ndarray:
    """An affine transform: pixel (x, y) comes from (a u + b v + c, d u + e v + f), u = x + 0.5, v = y + 0.5, or is `fill` if this
    point is outside the image.

    Values between the centres of pixels are interpolated in float64, linearly from 2 x 2 pixels or from 4 x 4 pixels by cubic
    convolution with a = -1, along x and then along y. Border pixels are repeated outwards. The fraction is truncated.
    """
    matrix = tuple(float(value) for value in matrix)
    a, b, c, d, e, f = matrix
    colour = np.asarray(fill, np.uint8)
    if (a, d, e, f) == (1, 0, 1, 0):
        return _shift_rows(pixels, b, c, colour, bicubic)
    if (a, b, c, e) == (1, 0, 0, 1):
        return transposed(_shift_rows(transposed(pixels), d, f, colour, bicubic))
    return _affine(pixels, matrix, colour, bicubic)


def rotate(pixels: np.ndarray, degrees: float, fill: Sequence[int], *, bicubic: bool) -> np.ndarray:
    """Counterclockwise about the centre, in the same frame; quarter turns are exact if the frame allows it."""
    height, width = pixels.shape[1:]
    degrees = degrees % 360.0
    if degrees % 180 == 0 or (degrees % 90 == 0 and width == height):
        return np.ascontiguousarray(np.rot90(pixels, int(degrees // 90), axes=(1, 2)))
    angle = -math.radians(degrees)
    cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
    minus_sine, x, y = round(-math.sin(angle), 15), width / 2, height / 2
    matrix = (cosine, sine, cosine * -x + sine * -y + 0.0 + x, minus_sine, cosine, minus_sine * -x + cosine * -y + 0.0 + y)
    return affine(pixels, matrix, fill, bicubic=bicubic)


@compiled
def transposed(pixels):
    """(C, W, H) of (C, H, W)."""
    channels, height, width = pixels.shape
    result = np.empty((channels, width, height), np.uint8)
    for c in range(channels):
        for top in range(0, height, 32):  # size of the first-level cache
            for y in range(top, min(top + 32, height)):
                row = pixels[c, y]
                for x in range(width):
                    result[c, x, y] = row[x]
    return result


@compiled
def _shift_rows(pixels, b, c, fill, bicubic):
    """x' = u + b v + c, y' = v: each row separately."""
    channels, height, width = pixels.shape
    result = np.empty((channels, height, width), np.uint8)
    columns, shares, line = np.empty(width, np.int64), np.empty(width, np.float64), np.empty(width + 4, np.float64)
    for y in range(height):
        begin, end = width, 0
        for x in range(width):
            place = ((x + 0.5) + b * (y + 0.5)) + c
            if 0.0 <= place < width:
                begin, end = min(begin, x), x + 1
            columns[x] = int(math.floor(place - 0.5))
            shares[x] = (place - 0.5) - columns[x]
        for channel in range(channels):
            row, out = pixels[channel, y], result[channel, y]
            _widen(row, line)
            out[:] = fill[channel]
            if begin < end:
                _interpolate(line, columns[begin:end], shares[begin:end], out[begin:end], bicubic)
    return result


@compiled
def _widen(row, line):
    """The row, extended by two copies of its end values on either side."""
    width, inner = len(row), line[2:]
    line[0] = line[1] = row[0]
    line[width + 2] = line[width + 3] = row[width - 1]
    for x in range(width):
        inner[x] = row[x]


@compiled
def _interpolate(line, columns, shares, out, bicubic):
    """out[i] between line[columns[i] + 2] and the value after it. Columns rise by 1 except for rounding; if they do, all values are
    computed at once."""
    first, in_step = columns[0], True
    for i in range(len(columns)):
        in_step &= columns[i] == first + i
    if in_step:
        v1, v2, v3, v4 = line[first + 1 :], line[first + 2 :], line[first + 3 :], line[first + 4 :]
        if bicubic:
            for i in range(len(out)):
                out[i] = _to_8_bits(_cubic(v1[i], v2[i], v3[i], v4[i], shares[i]))
        else:
            for i in range(len(out)):
                out[i] = _to_8_bits(_linear(v2[i], v3[i], shares[i]))
    else:
        for i in range(len(out)):
            v = line[columns[i] + 1 : columns[i] + 5]
            out[i] = _to_8_bits(_cubic(v[0], v[1], v[2], v[3], shares[i]) if bicubic else _linear(v[1], v[2], shares[i]))


@compiled
def _affine(pixels, matrix, fill, bicubic):
    """The general case. Neighbours in x are packed into one number, so a pixel is gathered from four places instead of 16. Then
    the pixels of a row are interpolated together."""
    a, b, c, d, e, f = matrix
    channels, height, width = pixels.shape
    result = np.empty((channels, height, width), np.uint8)
    packed, line = np.empty((channels, height * (width + 1)), np.uint32), np.empty(width + 4, np.uint8)
    for channel in range(channels):
        for y in range(height):
            _pack(pixels[channel, y], line, packed[channel][y * (width + 1) : (y + 1) * (width + 1)])
    places, found = np.empty((4, width), np.uint64), np.empty((4, width), np.uint32)
    x_shares, y_shares = np.empty(width, np.float64), np.empty(width, np.float64)
    for y in range(height):
        begin, end = width, 0
        for x in range(width):
            x_place = (a * (x + 0.5) + b * (y + 0.5)) + c
            y_place = (d * (x + 0.5) + e * (y + 0.5)) + f
            if not (0.0 <= x_place < width and 0.0 <= y_place < height):
                continue
            begin, end = min(begin, x), x + 1
            column, row = int(math.floor(x_place - 0.5)), int(math.floor(y_place - 0.5))
            x_shares[x], y_shares[x] = (x_place - 0.5) - column, (y_place - 0.5) - row
            for k in range(4):
                places[k, x] = min(max(row + k - 1, 0), height - 1) * (width + 1) + column + 1
        for channel in range(channels):
            out = result[channel, y]
            out[:] = fill[channel]
            if begin < end:
                words = packed[channel]
                for k in range(4):
                    place, word = places[k], found[k]
                    for x in range(begin, end):
                        word[x] = words[place[x]]
                _interpolate_packed(found, x_shares, y_shares, out, (begin, end), bicubic)
    return result


@compiled
def _pack(row, line, words):
    """words[i]: the values at i - 2, i - 1, i, i + 1, first in the lowest byte; the end values of the row are repeated."""
    _widen(row, line)
    v1, v2, v3, v4 = line, line[1:], line[2:], line[3:]
    for i in range(len(words)):
        words[i] = uint32(v1[i]) | uint32(v2[i]) << uint32(8) | uint32(v3[i]) << uint32(16) | uint32(v4[i]) << uint32(24)


@compiled
def _interpolate_packed(words, x_shares, y_shares, out, span, bicubic):
    begin, end = span
    # Sliced row by row: numba would not know that a slice of all rows is contiguous.
    w1, w2, w3, w4 = words[0][begin:end], words[1][begin:end], words[2][begin:end], words[3][begin:end]
    x_shares, y_shares, out = x_shares[begin:end], y_shares[begin:end], out[begin:end]
    for i in range(len(out)):
        if bicubic:
            upper, lower = _cubic_of(w1[i], x_shares[i]), _cubic_of(w4[i], x_shares[i])
            value = _cubic(upper, _cubic_of(w2[i], x_shares[i]), _cubic_of(w3[i], x_shares[i]), lower, y_shares[i])
        else:
            value = _linear(_linear_of(w2[i], x_shares[i]), _linear_of(w3[i], x_shares[i]), y_shares[i])
        out[i] = _to_8_bits(value)


@compiled
def _cubic_of(word, t):
    return _cubic(_byte(word, 0), _byte(word, 8), _byte(word, 16), _byte(word, 24), t)


@compiled
def _linear_of(word, t):
    return _linear(_byte(word, 8), _byte(word, 16), t)


@compiled
def _byte(word, shift):
    return float64(int32((word >> shift) & 255))


@compiled
def _cubic(v1, v2, v3, v4, t):
    return v2 + t * ((v3 - v1) + t * ((2 * (v1 - v2) + v3 - v4) + t * (v2 - v1 - v3 + v4)))


@compiled
def _linear(v1, v2, t):
    return v1 + (v2 - v1) * t


@compiled
def _to_8_bits(value):
    return int32(min(max(value, 0.0), 255.0))
