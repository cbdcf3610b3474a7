"""Description of a dataset: counts, sizes, and a contact sheet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cswin.atomic import atomic_path
from cswin.data.images.decode import decode_rgb
from cswin.data.store.dataset import Dataset, read_rows
from cswin.progress import size_text

_TILE, _CAPTION, _GAP, _COLUMNS = 112, 14, 4, 8
_BACKGROUND, _INK = (255, 255, 255), (32, 32, 32)


def describe(dataset: Dataset) -> Iterator[str]:
    """The dataset in a few lines: classes, images by split and class, bytes, shards."""
    yield f"dataset {dataset.name}: {len(dataset.class_names):,} classes, manifest {dataset.manifest_hash[:16]}"
    for split, shards in dataset.splits.items():
        index = dataset.index(split)
        labels, sizes = index.labels, index.sizes.astype(np.int64)
        counts = np.bincount(labels, minlength=len(dataset.class_names))
        low, high = int(counts.argmin()), int(counts.argmax())
        yield (
            f"{split}: {len(labels):,} images, {size_text(int(sizes.sum()))} in {len(shards):,} shards of "
            f"{size_text(min(s.bytes for s in shards))} to {size_text(max(s.bytes for s in shards))}"
        )
        yield (
            f"  an image: {size_text(int(sizes.min()))} to {size_text(int(sizes.max()))}, median {size_text(int(np.median(sizes)))}"
        )
        yield (
            f"  a class: {counts[low]:,} images ({dataset.class_names[low]}) to {counts[high]:,} ({dataset.class_names[high]}), "
            f"median {int(np.median(counts)):,}"
        )


def contact_sheet(dataset: Dataset, split: str, samples: int, seed: int, output: Path) -> None:
    """Write a PNG of random images with their classes.

    Args:
        dataset: the dataset.
        split: train or val.
        samples: number of images; all, if the split has fewer.
        seed: of the choice.
        output: PNG file; its folder is made.
    """
    images = dataset.images(split)
    positions = np.random.Generator(np.random.PCG64(seed)).choice(images, min(samples, images), replace=False)
    columns = min(_COLUMNS, len(positions))
    lines = -(-len(positions) // columns)
    cell = (_TILE + _GAP, _TILE + _CAPTION + _GAP)
    sheet = Image.new("RGB", (columns * cell[0] + _GAP, lines * cell[1] + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_CAPTION - 3)
    for number, (_, label, data) in enumerate(read_rows(dataset, split, positions)):
        left, top = _GAP + number % columns * cell[0], _GAP + number // columns * cell[1]
        tile = _fitted(decode_rgb(data))
        sheet.paste(tile, (left + (_TILE - tile.width) // 2, top + (_TILE - tile.height) // 2))
        draw.text((left, top + _TILE), _shortened(draw, dataset.class_names[label], font), _INK, font)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(output) as temporary:
        sheet.save(temporary, "PNG")


def _fitted(image: Image.Image) -> Image.Image:
    """The whole image at the size of a tile; small images are enlarged without interpolation."""
    scale = _TILE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _shortened(draw: ImageDraw.ImageDraw, text: str, font) -> str:
    if draw.textlength(text, font) <= _TILE:
        return text
    while text and draw.textlength(text + "…", font) > _TILE:
        text = text[:-1]
    return text + "…"
