"""Augmented training samples as the network sees them: after mixing, with their soft labels."""

from __future__ import annotations

from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np

from cswin.config.resolve import StageConfig
from cswin.config.runtime import Runtime
from cswin.data.augment.mixup import Mixing
from cswin.data.images.evaluation import Normalise
from cswin.data.loader.batches import Batch, TrainLoader
from cswin.data.store.dataset import Dataset
from cswin.errors import UserError
from cswin.report.pictures.style import picture
from cswin.report.pictures.tiles import COLUMNS, Block, Tile, blocks_height, draw_blocks, percent, shortened

_SAMPLES = 2 * COLUMNS  # samples of a batch: a row of samples above a row of their partners
_SEARCHED = 500  # batches that are searched for each kind of mixing


def draw_samples(dataset: Dataset, config: StageConfig, path: Path, *, title: str) -> None:
    """Write the picture: from the stage's first epoch the first batch of each kind (not mixed, mixup, cutmix).

    Args:
        dataset: the images.
        config: configuration of the stage; the samples are exactly those on which it trains.
        path: PNG to write.
        title: above the picture.

    Raises:
        UserError: if there are fewer images than one batch needs.
    """
    loader = sample_loader(dataset, config)
    if not loader.steps_per_epoch:
        raise UserError(f"{dataset.path}: fewer training images than optimizer.global_batch {config.optimizer.global_batch}")
    blocks = []
    for kind, step in first_steps(loader).items():
        paired = "; each above its partner" if kind != "not mixed" else ""
        tiles = _tiles(loader, step, dataset.class_names)
        blocks.append(Block(f"{kind[0].upper()}{kind[1:]}: step {step + 1} of epoch {config.start_epoch}{paired}", tiles))
    subtitle = (
        "as the network sees them: normalisation undone, clipped to 0 to 255; below: the largest two shares of the soft label\n"
        f"{_recipe(config)}"
    )
    with picture(path, blocks_height(blocks, subtitle), title, subtitle) as figure:
        draw_blocks(figure, blocks)


def sample_loader(dataset: Dataset, config: StageConfig) -> TrainLoader:
    """The stage's own loader, as one of many devices. Batches do not depend on the number of devices, so only the few samples
    that are shown are read."""
    batch = config.optimizer.global_batch
    parts = batch // _SAMPLES if batch % _SAMPLES == 0 else 1
    return TrainLoader(dataset, config, Runtime(devices=parts, batch_size=batch // parts, workers=2, worker_kind="thread"))


def first_steps(loader: TrainLoader) -> dict[str, int]:
    """For each kind of mixing in the first epoch, its first batch (step within the epoch)."""
    if not loader.mixes:
        return {"not mixed": 0}
    found: dict[str, int] = {}
    for step in range(min(loader.steps_per_epoch, _SEARCHED)):
        mixing = loader.mixing(loader.config.start_epoch, step).rows(loader.micro_rows[0])
        found.setdefault(_kind(mixing), step)
        if len(found) == 3:
            break
    return {kind: found[kind] for kind in ("not mixed", "mixup", "cutmix", "mixup and cutmix") if kind in found}


def denormalised(images: np.ndarray, normalise: Normalise) -> np.ndarray:
    """Pixels (…, C, H, W) uint8 of a network's input (…, C, H, W) float32; values out of range (erased noise) are clipped."""
    factor, offset = normalise.factor[:, None, None], normalise.offset[:, None, None]
    return np.clip(np.rint((images - offset) / factor), 0, 255).astype(np.uint8)


def soft_label(target: np.ndarray, names: tuple[str, ...]) -> tuple[str, ...]:
    """The largest share of a target with its class, and the second largest if it exceeds the share from label smoothing."""
    first, second = np.argsort(-target, kind="stable")[:2] if len(target) > 1 else (0, 0)
    lines = [f"{shortened(names[first], 8)}: {percent(target[first])}"]
    if target[second] > target.min() + 1e-6 and first != second:
        lines.append(f"{shortened(names[second], 8)}: {percent(target[second])}")
    return tuple(lines)


def _tiles(loader: TrainLoader, step: int, names: tuple[str, ...]) -> list[Tile]:
    with closing(loader.epoch(loader.config.start_epoch, step)) as steps:
        batch: Batch = next(islice(steps, 1))[0]
    pairs = min(COLUMNS, len(batch.images) // 2) or 1
    shown = [*range(pairs), *(len(batch.images) - 1 - j for j in range(pairs))][: len(batch.images)]
    pixels = denormalised(batch.images, loader.transform.normalise)
    return [Tile(pixels[row], soft_label(batch.targets[row], names)) for row in shown]


def _kind(mixing: Mixing) -> str:
    if not mixing.mixes:
        return "not mixed"
    cut, blended = mixing.is_cutmix.any(), ((mixing.lam != 1) & ~mixing.is_cutmix).any()
    return "mixup and cutmix" if cut and blended else "cutmix" if cut else "mixup"


def _recipe(config: StageConfig) -> str:
    augment = config.augment
    mixing = f"mixup {augment.mixup:g}, cutmix {augment.cutmix:g}, probability {augment.mixup_prob:g}"
    return (
        f"crop {augment.scale[0]:g} to {augment.scale[1]:g}, flip {augment.hflip:g}, {augment.rand_augment or 'no RandAugment'}, "
        f"erasing {augment.erase_prob:g} {augment.erase.replace('_', ' ')}, {mixing}, label smoothing {augment.label_smoothing:g}"
    )
