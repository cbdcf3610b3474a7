"""The network's compiled kernels against float64 formulas, over several pieces of work, any number of cores, NaN and infinity."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import special, stats

from cswin.model import kernels, pieces


def within(found, wanted, tolerance):
    return np.abs(found - wanted).max() <= tolerance * max(1.0, np.abs(wanted).max())


@pytest.fixture
def small_pieces(monkeypatch):
    """Arrays of a few thousand numbers make several pieces, the last of another size."""
    monkeypatch.setattr(pieces, "PIECE", 1000)


def draw(*shape, seed=0, mean=0.0):
    return np.random.default_rng(seed).normal(mean, 1.0, shape).astype(np.float32)


def test_gelu_and_its_slope_over_the_whole_range(small_pieces):
    x = np.concatenate([np.linspace(-20, 20, 40_001), [0.0, -0.0, 1e-30, -1e-30, 5.515, 5.516, 100, -100, 3e38, -3e38]]).astype(
        np.float32
    )
    dy = draw(*x.shape)
    x64 = x.astype(np.float64)
    phi = special.ndtr(x64)
    with np.errstate(over="ignore"):
        slope = phi + x64 * stats.norm.pdf(x64)
    found, gradient = kernels.gelu(x), kernels.gelu_gradient(x, dy)
    assert (np.abs(found - x64 * phi) <= 2e-7 * np.maximum(1, np.abs(x64))).all()
    assert (np.abs(gradient - dy * slope) <= 4e-7 * np.maximum(1, np.abs(dy))).all()


def test_numbers_that_are_none_stay_none():
    x = np.array([np.nan, np.inf, 1.0], np.float32)
    assert np.isnan(kernels.gelu(x)[0]) and kernels.gelu(x)[1] == np.inf and np.isfinite(kernels.gelu(x)[2])
    assert np.isnan(kernels.gelu_gradient(x, np.ones_like(x))[0])
    assert np.isnan(kernels.gelu_gradient(np.ones_like(x), x)).tolist() == [True, False, False]
    rows, ones = np.stack([x, np.arange(3, dtype=np.float32)]), np.ones(3, np.float32)
    y, statistics = kernels.layer_norm(rows, ones, ones, epsilon=1e-5)
    assert np.isnan(y[0]).all() and np.isfinite(y[1]).all()
    dx, _, _ = kernels.layer_norm_gradient(rows, ones, statistics, np.ones_like(rows))
    assert np.isnan(dx[0]).all() and np.isfinite(dx[1]).all()


@pytest.mark.parametrize("width", [1, 7, 64, 513])
def test_layer_norm(width, small_pieces):
    x, w, b, dy = draw(97, width, mean=3), draw(width, seed=1), draw(width, seed=2), draw(97, width, seed=3)
    x64 = x.astype(np.float64)
    scale = 1 / np.sqrt(x64.var(1, keepdims=True) + 1e-5)
    normal = (x64 - x64.mean(1, keepdims=True)) * scale
    g = dy * w.astype(np.float64)
    y, statistics = kernels.layer_norm(x, w, b, epsilon=1e-5)
    dx, dw, db = kernels.layer_norm_gradient(x, w, statistics, dy)
    assert within(y, normal * w + b, 3e-6)
    assert within(dx, (g - g.mean(1, keepdims=True) - normal * (g * normal).mean(1, keepdims=True)) * scale, 2e-5)
    assert within(dw, (dy * normal).sum(0), 3e-6) and within(db, dy.astype(np.float64).sum(0), 3e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 1), (1, 5), (2, 3), (7, 4)])
def test_lepe_and_its_gradients(height, width, small_pieces):
    """Taps as shifted sums; the gradients as sums of products with the same shifts."""
    heads, depth, windows = 3, 5, 24
    v, dout = draw(windows, height * width, depth), draw(windows, height * width, depth, seed=1)
    weight, bias = draw(heads * depth, 1, 3, 3, seed=2), draw(heads * depth, seed=3)
    taps = weight.reshape(heads, depth, 3, 3).astype(np.float64)
    padded = np.pad(v.reshape(-1, heads, height, width, depth).astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    arriving = dout.reshape(-1, heads, height, width, depth).astype(np.float64)
    wanted, dv, dweight = np.zeros_like(arriving), np.zeros_like(padded), np.zeros_like(taps)
    for y in range(3):
        for x in range(3):
            part = (slice(None), slice(None), slice(y, y + height), slice(x, x + width))
            tap = taps[:, :, y, x].reshape(1, heads, 1, 1, depth)
            wanted += padded[part] * tap
            dv[part] += arriving * tap
            dweight[:, :, y, x] = (arriving * padded[part]).sum((0, 2, 3))
    wanted += bias.reshape(1, heads, 1, 1, depth)
    assert within(kernels.lepe(v, weight, bias, width=width), wanted.reshape(v.shape), 1e-6)
    found = kernels.lepe_gradient(v, weight, dout, width=width)
    assert within(found[0], dv[:, :, 1:-1, 1:-1].reshape(v.shape), 1e-6)
    assert within(found[1], dweight.reshape(weight.shape), 2e-6)
    assert within(found[2], arriving.sum((0, 2, 3)).reshape(-1), 2e-6)


def test_the_number_of_cores_changes_no_bit(small_pieces, monkeypatch):
    """Rows that no vector divides, cut elsewhere for each number of cores."""
    x, w, dy = draw(301, 67), draw(67, seed=1), draw(301, 67, seed=2)
    v, weight, dout = draw(60, 6, 16), draw(32, 1, 3, 3, seed=1), draw(60, 6, 16, seed=2)
    found = []
    for cores in (1, 2, 3, 7):
        with ThreadPoolExecutor(cores) as pool:
            monkeypatch.setattr(pieces, "_threads", lambda pool=pool: pool)
            monkeypatch.setattr(pieces, "usable_cores", lambda cores=cores: cores)
            y, statistics = kernels.layer_norm(x, w, w, epsilon=1e-5)
            results = [kernels.gelu(x), kernels.gelu_gradient(x, dy), y]
            results += kernels.layer_norm_gradient(x, w, statistics, dy)
            results += [kernels.lepe(v, weight, weight[:, 0, 0, 0].copy(), width=3)]
            results += kernels.lepe_gradient(v, weight, dout, width=3)
        found.append(b"".join(np.ascontiguousarray(a).tobytes() for a in results))
    assert len(set(found)) == 1


def test_results_lie_in_one_piece_of_memory():
    """MindSpore takes no others."""
    v, weight = draw(4, 9, 3), draw(3, 1, 3, 3)
    for results in (
        kernels.lepe_gradient(v, weight, v, width=3),
        kernels.layer_norm_gradient(draw(4, 8), draw(8), draw(4, 2), draw(4, 8)),
        kernels.layer_norm(draw(4, 8), draw(8), draw(8), epsilon=1e-5),
    ):
        assert all(array.flags.c_contiguous for array in results)
