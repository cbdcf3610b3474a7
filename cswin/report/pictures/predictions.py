"""Validation images as the network sees them, with its predictions; wrong ones first."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cswin.config.resolve import StageConfig
from cswin.data.images.evaluation import EvalTransform
from cswin.data.images.preprocessing import Preprocessing
from cswin.data.store.dataset import Dataset, read_rows
from cswin.errors import UserError
from cswin.predictions import Predictions
from cswin.report.pictures.style import RIGHT, WRONG, picture
from cswin.report.pictures.tiles import COLUMNS, Block, Tile, blocks_height, draw_blocks, percent, shortened

_WRONG, _UNSURE, _TYPICAL = 3 * COLUMNS, COLUMNS, COLUMNS  # tiles, at most


def draw_predictions(
    predictions: Predictions, dataset: Dataset, config: StageConfig, path: Path, *, title: str, weights: str
) -> None:
    """Write the picture.

    Args:
        predictions: of all images of the validation set, in its order.
        dataset: where the images are.
        config: of the stage: its preprocessing, its seed.
        path: PNG to write.
        title: above the picture.
        weights: which weights were evaluated, in words.

    Raises:
        UserError: if the predictions are of other images.
    """
    labels = dataset.index("val").labels
    if not (np.array_equal(predictions.positions, np.arange(len(labels))) and np.array_equal(labels, predictions.labels)):
        raise UserError(f"{dataset.path}: the predictions are of other validation images; evaluate the stage again")
    chosen = choose(predictions, config.seed)
    blocks = [
        Block(f"Wrong: {_count(len(chosen['wrong']), int((~predictions.right1).sum()))}, least probable label first", []),
        Block("Right, but least sure", []),
        Block("Right, drawn at random", []),
    ]
    transform = EvalTransform(Preprocessing.of_stage(config))
    for block, positions in zip(blocks, chosen.values(), strict=True):
        for position, label, data in read_rows(dataset, "val", positions):
            block.tiles.append(prediction_tile(predictions, dataset.class_names, position, label, transform.pixels(data)))
    blocks = [block for block in blocks if block.tiles]
    n, right = len(predictions.labels), int(predictions.right1.sum())
    subtitle = f"{right:,} of {n:,} validation images right, {weights}; p: probability that the network gives the label"
    with picture(path, blocks_height(blocks), title, subtitle) as figure:
        draw_blocks(figure, blocks)


def choose(predictions: Predictions, seed: int) -> dict[str, np.ndarray]:
    """Which images are shown: positions of `wrong` (least probable label first), `unsure` (right, least probable label first) and
    `typical` (right, drawn by `seed` from the rest)."""
    order = np.argsort(-predictions.losses, kind="stable")
    wrong, right = order[~predictions.right1[order]], order[predictions.right1[order]]
    rest = right[_UNSURE:]
    typical = np.random.default_rng(seed).permutation(rest)[:_TYPICAL]
    return {"wrong": wrong[:_WRONG], "unsure": right[:_UNSURE], "typical": typical}


def prediction_tile(predictions: Predictions, names: tuple[str, ...], position: int, label: int, pixels: np.ndarray) -> Tile:
    """The image at `position` with its prediction and the probability of its label."""
    probability, said = percent(np.exp(-predictions.losses[position])), int(predictions.top5[position, 0])
    if said == label:
        return Tile(pixels, (f"✓ {shortened(names[label])}", f"p {probability}"), RIGHT)
    return Tile(pixels, (f"✗ said {shortened(names[said], 6)}", f"is {shortened(names[label], 9)}", f"p {probability}"), WRONG)


def _count(shown: int, of: int) -> str:
    return f"all {of:,}" if shown == of else f"{shown:,} of {of:,}"
