"""Operations of the network for which MindSpore's CPU kernels are slow, as loops with one pass over memory: GELU, LayerNorm, LePE.

All arrays are float32, contiguous. Work is cut so that the number of cores does not change a bit (`cswin.model.pieces`). The compiler
may reorder sums within a row to fill vectors: results differ between kinds of machines by rounding, as those of MindSpore's own
products do.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numba import float32, float64, int32

from cswin.compiled import compiled
from cswin.model.pieces import carry_out, parts, pieces, runs

kernel = partial(compiled, fastmath=frozenset({"reassoc", "contract"}))  # NaN and infinity keep their meaning


# GELU

# Phi(x) - 1/2 = x P(x^2) / Q(x^2) up to |x| = 3.9 sqrt(2), within 2e-8 relative before rounding: a minimax fit, computed for
# this project by iteratively reweighted least squares on erf. For larger |x|, Phi is 0 or 1 at float32's resolution of 1.
_END = np.float32(3.9 * math.sqrt(2.0))
_P0, _P1, _P2, _P3, _P4, _P5 = np.float32(
    [
        0.3989422619342804,
        0.0335288941860199,
        0.004655259661376476,
        0.00016521547513548285,
        6.299071628745878e-06,
        2.283142030989893e-08,
    ]
)
_Q1, _Q2, _Q3, _Q4, _Q5 = np.float32(
    [0.2507108747959137, 0.028454868122935295, 0.0018642980139702559, 7.233682845253497e-05, 1.195937215925369e-06]
)
# e^r on |r| <= ln(2) / 2, within 3e-9 relative before rounding: interpolation at Chebyshev points.
_E2, _E3, _E4, _E5, _E6 = np.float32(
    [0.5000000047118066, 0.1666641551464946, 0.04166635289598705, 0.008375126398416404, 0.00139411084810623]
)
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1 / math.log(2)), np.float32(0.693359375), np.float32(math.log(2) - 0.693359375)
_LEAST = np.float32(-87)  # e^-87 is near the smallest normal number: 0 from here on
_BIAS, _MANTISSA = np.float32(127), np.float32(1 << 23)
_HALF, _ONE, _DENSITY = np.float32(0.5), np.float32(1), np.float32(1 / math.sqrt(2 * math.pi))


@kernel
def _phi(x):
    """The normal distribution's cumulative function of a float32 other than NaN."""
    c = min(max(x, -_END), _END)
    t = c * c
    p = ((((_P5 * t + _P4) * t + _P3) * t + _P2) * t + _P1) * t + _P0
    q = ((((_Q5 * t + _Q4) * t + _Q3) * t + _Q2) * t + _Q1) * t + _ONE
    return c * p / q + _HALF


@kernel
def _gelu(x, y):
    for i in range(len(x)):
        y[i] = x[i] * _phi(x[i])


@kernel
def _gelu_gradient(x, dy, dx):
    bits, fraction = np.empty(1024, np.int32), np.empty(1024, np.float32)
    power = bits.view(np.float32)
    for begin in range(0, len(x), 1024):
        u, du, result = x[begin : begin + 1024], dy[begin : begin + 1024], dx[begin : begin + 1024]
        for i in range(len(u)):  # e^(-u^2 / 2) = 2^k e^r
            t = max(float32(-_HALF * u[i] * u[i]), _LEAST)
            k = np.floor(t * _LOG2_E + _HALF)
            r = (t - k * _LN2_HIGH) - k * _LN2_LOW
            power_of_e = (((((_E6 * r + _E5) * r + _E4) * r + _E3) * r + _E2) * r + _ONE) * r + _ONE
            fraction[i] = power_of_e if t > _LEAST else float32(0)
            bits[i] = int32((k + _BIAS) * _MANTISSA)  # 2^k: the bits of its exponent, at their position in float32
        for i in range(len(u)):
            result[i] = du[i] * (u[i] * (_DENSITY * fraction[i] * power[i]) + _phi(u[i]))


def gelu(x: np.ndarray) -> np.ndarray:
    """x Phi(x), Phi the normal distribution's cumulative function; any shape."""
    y = np.empty_like(x)
    a, b = x.reshape(-1), y.reshape(-1)
    carry_out(lambda _, first, last: _gelu(a[first:last], b[first:last]), runs(a.size))
    return y


def gelu_gradient(x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """dy (Phi(x) + x phi(x)), phi = Phi'."""
    dx = np.empty_like(x)
    a, b, c = x.reshape(-1), dy.reshape(-1), dx.reshape(-1)
    carry_out(lambda _, first, last: _gelu_gradient(a[first:last], b[first:last], c[first:last]), runs(a.size))
    return dx


# LayerNorm


@kernel
def _layer_norm(x, weight, bias, epsilon, y, statistics):
    width = x.shape[1]
    share = _ONE / float32(width)
    for row in range(len(x)):
        total = float32(0)
        for j in range(width):
            total += x[row, j]
        mean = total * share
        squares = float32(0)
        for j in range(width):
            squares += (x[row, j] - mean) * (x[row, j] - mean)
        scale = _ONE / np.sqrt(squares * share + epsilon)
        for j in range(width):
            y[row, j] = (x[row, j] - mean) * scale * weight[j] + bias[j]
        statistics[row, 0], statistics[row, 1] = mean, scale


@kernel
def _layer_norm_gradient(x, weight, statistics, dy, dx, sums):
    """`sums` (2, C) of the piece: of dy times the normalised rows, and of dy."""
    width = x.shape[1]
    share = _ONE / float32(width)
    sums[:] = float32(0)
    for row in range(len(x)):
        mean, scale = statistics[row, 0], statistics[row, 1]
        total, correlation = float32(0), float32(0)
        for j in range(width):
            g = dy[row, j] * weight[j]
            total += g
            correlation += g * ((x[row, j] - mean) * scale)
        total, correlation = total * share, correlation * share
        for j in range(width):
            normal = (x[row, j] - mean) * scale
            dx[row, j] = (dy[row, j] * weight[j] - total - normal * correlation) * scale
            sums[0, j] += dy[row, j] * normal
            sums[1, j] += dy[row, j]


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, *, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """LayerNorm of rows (arXiv 1607.06450): (M, C), (C,), (C,) -> result (M, C), each row's mean and 1 / deviation (M, 2)."""
    y, statistics = np.empty_like(x), np.empty((len(x), 2), np.float32)

    def work(_, first, last):
        _layer_norm(x[first:last], weight, bias, np.float32(epsilon), y[first:last], statistics[first:last])

    carry_out(work, parts(*x.shape))
    return y, statistics


def layer_norm_gradient(
    x: np.ndarray, weight: np.ndarray, statistics: np.ndarray, dy: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients for x, weight and bias."""
    cut, dx = pieces(*x.shape), np.empty_like(x)
    sums = np.empty((len(cut), 2, x.shape[1]), np.float32)

    def work(i, first, last):
        _layer_norm_gradient(x[first:last], weight, statistics[first:last], dy[first:last], dx[first:last], sums[i])

    carry_out(work, cut)
    total = sums.sum(0)
    return dx, total[0], total[1]


# LePE


@kernel
def _lepe(v, taps, bias, y, first):
    """v, y: (windows, tokens * depth), from window `first` on. taps: (heads, 9, width, depth), bias: (heads, width * depth), the
    same for each token of a stripe's row."""
    (heads, line), depth = bias.shape, taps.shape[3]
    lines, height = taps.reshape(heads, 9, line), v.shape[1] // line
    for window in range(len(v)):
        head = (first + window) % heads
        for row in range(height):
            to = y[window, row * line : (row + 1) * line]
            to[:] = bias[head]
            for dy in range(max(0, 1 - row), min(3, height + 1 - row)):
                at = v[window, (row + dy - 1) * line : (row + dy) * line]
                for dx in range(3):
                    shift = (dx - 1) * depth
                    tap, source, target = lines[head, dy * 3 + dx], at[max(0, shift) :], to[max(0, -shift) :]
                    for i in range(line - abs(shift)):
                        target[i] += tap[i] * source[i]


@kernel
def _lepe_gradient(v, taps, dout, dv, sums, first):
    """`sums` (heads, 10, width * depth) of the piece: for the nine taps and the bias."""
    heads, depth, line = taps.shape[0], taps.shape[3], sums.shape[2]
    lines, height = taps.reshape(heads, 9, line), v.shape[1] // line
    sums[:] = float32(0)
    for window in range(len(v)):
        head = (first + window) % heads
        dv[window] = float32(0)
        for row in range(height):
            to = dout[window, row * line : (row + 1) * line]
            for i in range(line):
                sums[head, 9, i] += to[i]
            for dy in range(max(0, 1 - row), min(3, height + 1 - row)):
                begin = (row + dy - 1) * line
                at, back = v[window, begin : begin + line], dv[window, begin : begin + line]
                for dx in range(3):
                    shift = (dx - 1) * depth
                    tap, total, target = lines[head, dy * 3 + dx], sums[head, dy * 3 + dx], to[max(0, -shift) :]
                    source, slope = at[max(0, shift) :], back[max(0, shift) :]
                    for i in range(line - abs(shift)):
                        slope[i] += tap[i] * target[i]
                        total[i] += source[i] * target[i]


def _along_rows(numbers: np.ndarray, depth: int, width: int) -> np.ndarray:
    """(heads * depth, n) -> (heads, n, width, depth), the same for each token of a row."""
    return np.repeat(numbers.reshape(-1, depth, numbers.shape[1]).transpose(0, 2, 1)[:, :, None], width, 2)


def lepe(v: np.ndarray, weight: np.ndarray, bias: np.ndarray, *, width: int) -> np.ndarray:
    """Depthwise 3x3 convolution, zero-padded inside each window of height x width tokens.

    Args:
        v: (windows, height * width, depth), with the heads of a stripe in consecutive windows.
        weight: heads * depth * 9 numbers, any shape.
        bias: (heads * depth,).
    """
    windows, tokens, depth = v.shape
    y, flat = np.empty((windows, tokens * depth), np.float32), v.reshape(windows, -1)
    taps, bias = _along_rows(weight.reshape(-1, 9), depth, width), _along_rows(bias[:, None], depth, width)
    bias = bias.reshape(len(taps), -1)
    carry_out(lambda _, first, last: _lepe(flat[first:last], taps, bias, y[first:last], first), parts(*flat.shape))
    return y.reshape(v.shape)


def lepe_gradient(
    v: np.ndarray, weight: np.ndarray, dout: np.ndarray, *, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients for v, weight and bias."""
    windows, tokens, depth = v.shape
    flat, arriving, taps = v.reshape(windows, -1), dout.reshape(windows, -1), _along_rows(weight.reshape(-1, 9), depth, width)
    dv, cut = np.empty_like(flat), pieces(*flat.shape)
    sums = np.empty((len(cut), len(taps), 10, width * depth), np.float32)

    def work(i, first, last):
        _lepe_gradient(flat[first:last], taps, arriving[first:last], dv[first:last], sums[i], first)

    carry_out(work, cut)
    total = np.ascontiguousarray(sums.sum(0).reshape(len(taps), 10, width, depth).sum(2).transpose(0, 2, 1)).reshape(-1, 10)
    return dv.reshape(v.shape), np.ascontiguousarray(total[:, :9]).reshape(weight.shape), np.ascontiguousarray(total[:, 9])


# Sum of squares


@kernel
def _square_sum(x):
    total = float64(0)
    for i in range(len(x)):
        total += float64(x[i]) * float64(x[i])
    return total


def square_sum(x: np.ndarray) -> np.ndarray:
    """The sum of the squares of (n,), added in float64: (1,), float32."""
    cut = pieces(len(x), 1)
    sums = np.empty(len(cut))

    def work(i, first, last):
        sums[i] = _square_sum(x[first:last])

    carry_out(work, cut)
    return np.array([sums.sum()], np.float32)


def soft_cross_entropy(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the batch of -sum(targets log softmax(logits)), and its gradient for the logits; computed in float64.

    Args:
        logits, targets: (B, classes).

    Returns:
        (1,) and (B, classes), float32.
    """
    x, t = logits.astype(np.float64), targets.astype(np.float64)
    with np.errstate(all="ignore"):  # the training step handles steps that are not finite
        shifted = x - x.max(1, keepdims=True)
        powers = np.exp(shifted)
        total, weight = powers.sum(1, keepdims=True), t.sum(1, keepdims=True)
        loss = (np.log(total) * weight).sum() - (t * shifted).sum()
        gradient = (powers / total * weight - t) / len(x)
    return np.array([loss / len(x)], np.float32), gradient.astype(np.float32)
