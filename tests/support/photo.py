"""A synthetic photograph, and image files in memory."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """A synthetic photograph: smooth shapes, edges and some grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(width, height)
    values = 128 + sum(
        rng.uniform(10, 40, 3) / f * np.sin(2 * np.pi * f * (np.cos(a) * x + np.sin(a) * y) + rng.uniform(0, 6))[..., None]
        for f, a in ((f, rng.uniform(0, 6)) for f in (1, 2, 3, 5, 8, 13, 21))
    )
    values[(x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.03] += rng.uniform(-80, 80, 3)
    values += rng.normal(0, 4, (height, width, 1))
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def planes(image: Image.Image) -> np.ndarray:
    """(C, H, W) uint8 of an RGB or L image."""
    pixels = np.array(image)
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1))


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
