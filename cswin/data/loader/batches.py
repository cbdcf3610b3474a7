"""Batches from MindRecord: the order, the augmentation, the mixing.

Every random decision is keyed by (seed, epoch, sample) or (seed, epoch, step). So the batches are bit-identical for any number and
kind of workers, for any split over devices and accumulation, and when an epoch is resumed in its middle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from cswin.config.resolve import StageConfig
from cswin.config.runtime import Runtime
from cswin.data.augment.mixup import Mixing, apply_mixup, draw_mixup, local_rows, one_hot
from cswin.data.augment.transforms import Drawn, TrainTransform
from cswin.data.images.evaluation import EvalTransform
from cswin.data.images.preprocessing import Preprocessing
from cswin.data.loader.labelled import Row
from cswin.data.loader.rng import batch_rng, holdout_rng, order_rng, sample_rng
from cswin.data.loader.workers import CHUNK, in_order, prefetched, worker_pool
from cswin.data.store.dataset import Dataset, read_rows
from cswin.errors import BadImage, UserError


@dataclass
class Batch:
    """The input of one device's forward pass.

    Attributes:
        images: (B, C, H, W) float32.
        targets: (B, classes) float32.
        columns: (B,) positions of the rows in the global batch.
    """

    images: np.ndarray
    targets: np.ndarray
    columns: np.ndarray


def training_positions(images: int, config: StageConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training set for training, and rows held out for selection (empty unless select_on is minival).

    The choice depends only on the seed, the number of images and the size of the part. It is the same in every stage and epoch.

    Raises:
        UserError: if no image would be left for training.
    """
    if config.evaluation.select_on == "val":
        return np.arange(images), np.arange(0)
    held_out = config.evaluation.minival_images
    if held_out >= images:
        raise UserError(
            f"evaluation.minival_images: {held_out} must be less than the {images} training images, of which they are held out"
        )
    shuffled = holdout_rng(config.seed).permutation(images)
    return np.sort(shuffled[held_out:]), np.sort(shuffled[:held_out])


class TrainLoader:
    """Mixed and augmented training batches of one device.

    Args:
        dataset, config, runtime: the images, the augmentation, the number of workers.
        rank: this device among runtime.devices.
    """

    def __init__(self, dataset: Dataset, config: StageConfig, runtime: Runtime, rank: int = 0):
        self.dataset, self.config, self.runtime = dataset, config, runtime
        self.positions, _ = training_positions(dataset.images("train"), config)
        self.global_batch = config.optimizer.global_batch
        self.steps_per_epoch = len(self.positions) // self.global_batch
        self.mixes = config.augment.mixup > 0 or config.augment.cutmix > 0
        self.group = config.augment.mixup_group if self.mixes else self.global_batch
        parts = runtime.devices * runtime.accumulation
        rows = local_rows(self.global_batch, self.group, parts, mixed=self.mixes)
        self.micro_rows = list(rows)[rank * runtime.accumulation : (rank + 1) * runtime.accumulation]
        self.transform = TrainTransform(Preprocessing.of_stage(config), config.augment)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """The optimizer steps of an epoch from `first_step` on, as lists of micro-batches. Earlier rows are not read."""
        order = order_rng(self.config.seed, epoch).permutation(self.positions)
        steps = range(first_step, self.steps_per_epoch)
        local = np.concatenate(self.micro_rows)
        wanted = [order[step * self.global_batch + local] for step in steps]
        if not wanted:
            return
        rows = read_rows(self.dataset, "train", np.concatenate(wanted))
        task = TrainTask(self.transform, self.config.seed, epoch)
        with worker_pool(self.runtime.worker_kind, self.runtime.workers) as pool, closing(rows):
            samples = in_order(pool, task, rows, _ahead(self.runtime, len(local)))
            with closing(prefetched((self._step(samples, epoch, step) for step in steps), self.runtime.prefetch)) as ready:
                yield from ready

    def _step(self, samples: Iterator, epoch: int, step: int) -> list[Batch]:
        return [self._micro_batch(samples, rows, epoch, step) for rows in self.micro_rows]

    def _micro_batch(self, samples: Iterator, rows: np.ndarray, epoch: int, step: int) -> Batch:
        arch, augment, size = self.config.architecture, self.config.augment, len(rows)
        images, labels = (
            np.empty((size, arch.in_channels, arch.image_size, arch.image_size), np.float32),
            np.empty(size, np.int64),
        )
        mixed_first = self.mixes and augment.erase == "after_mixing"
        drawn = []
        for i, (sample, label) in enumerate(islice(samples, size)):
            labels[i] = label
            if mixed_first:
                drawn.append(sample)
            else:
                self.transform.finish(sample, images[i])
        if not self.mixes:
            return Batch(images, one_hot(labels, self.config.num_classes, augment.label_smoothing), rows)
        unmixed = np.stack([sample.pixels for sample in drawn]) if mixed_first else images
        mixing = self.mixing(epoch, step).rows(rows)
        mixed, targets = apply_mixup(unmixed, labels, mixing, self.config.num_classes, augment.label_smoothing)
        for i, sample in enumerate(drawn):
            self.transform.finish(Drawn(mixed[i], sample.patches), images[i])
        return Batch(images, targets, rows)

    def mixing(self, epoch: int, step: int) -> Mixing:
        """The draws of all groups of the global batch, one after the other."""
        augment, size = self.config.augment, self.config.image_size
        groups = [
            draw_mixup(batch_rng(self.config.seed, epoch, step, group), self.group, (size, size), augment)
            for group in range(self.global_batch // self.group)
        ]
        return Mixing.concatenate(groups)


@dataclass(frozen=True)
class TrainTask:
    """One training sample: (position, label, bytes) -> (drawn image, label)."""

    transform: TrainTransform
    seed: int
    epoch: int

    def __call__(self, row: tuple[int, int, bytes]) -> tuple[Drawn, int]:
        position, label, data = row
        try:
            return self.transform.draw(data, sample_rng(self.seed, self.epoch, position)), label
        except BadImage as error:
            raise BadImage(f"training image {position}: {error}; {_REMEDY}") from error


class EvalBatch(NamedTuple):
    """A batch for evaluation.

    Attributes:
        images: (n, C, H, W) float32.
        labels: (n,) int64.
        positions: (n,) int64, of the rows in their split.
    """

    images: np.ndarray
    labels: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True)
class EvalTask:
    """One validation sample: (position, label, bytes, name of the file if it has one) -> ((C, H, W) uint8, label, position)."""

    transform: EvalTransform

    def __call__(self, row: Row) -> tuple[np.ndarray, int, int]:
        position, label, data, *name = row
        try:
            return self.transform.pixels(data), label, position
        except BadImage as error:
            if name:
                raise BadImage(f"{name[0]}: {error}; replace or remove it") from error
            raise BadImage(f"validation image {position}: {error}; {_REMEDY}") from error


_REMEDY = (
    "`cswin data verify` says whether its shard is damaged and how to convert that one again; if none is, make the dataset again "
    "with data.on_bad_image: skip, which leaves such files out"
)


def eval_batches(rows: Iterable[Row], task: EvalTask, runtime: Runtime) -> Iterator[EvalBatch]:
    """Batches in the order of `rows`; the last one may be shorter."""
    size = runtime.eval_batch_size
    with worker_pool(runtime.worker_kind, runtime.workers) as pool:
        samples = in_order(pool, task, rows, _ahead(runtime, size))
        while batch := list(islice(samples, size)):
            images = np.empty((len(batch), *batch[0][0].shape), np.float32)
            for (pixels, _, _), image in zip(batch, images, strict=True):
                task.transform.normalise(pixels, image)
            _, labels, positions = zip(*batch, strict=True)
            yield EvalBatch(images, np.array(labels, np.int64), np.array(positions, np.int64))


def _ahead(runtime: Runtime, batch: int) -> int:
    """Number of rows in progress: enough for every worker and for the next batch."""
    return max(2 * batch, 2 * CHUNK * runtime.workers)
