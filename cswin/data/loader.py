"""Batches from MindRecord: the order, the workers, the mixing.

Every random decision is keyed by (seed, epoch, sample) or (seed, epoch, step), so the batches are the same bytes for any number
and kind of workers, for any split over devices and accumulation, and when an epoch is entered in its middle.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from cswin.config.resolve import StageConfig
from cswin.config.settings import Augment, Runtime
from cswin.data.dataset import Dataset, read_rows
from cswin.data.mixup import apply_mixup, local_rows, one_hot, plan_mixup
from cswin.data.rng import batch_rng, holdout_rng, order_rng, sample_rng
from cswin.data.transforms import EvalTransform, TrainTransform


@dataclass
class Batch:
    """What one device's forward pass takes.

    Attributes:
        images: (B, C, H, W) float32.
        targets: (B, classes) float32.
        columns: (B,) positions of the rows in the global batch.
    """

    images: np.ndarray
    targets: np.ndarray
    columns: np.ndarray


def normalisation(augment: Augment, channels: int) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation per channel; a grey image takes the average of the three."""
    pick = (lambda v: tuple(v)) if channels == 3 else (lambda v: (sum(v) / len(v),))
    return {"mean": pick(augment.mean), "std": pick(augment.std)}


def train_transform(config: StageConfig) -> TrainTransform:
    """The augmentation that a stage asks for."""
    arch, augment = config.architecture, config.augment
    return TrainTransform(
        arch.image_size,
        channels=arch.in_channels,
        scale=tuple(augment.scale),
        ratio=tuple(augment.ratio),
        interpolation=augment.interpolation,
        hflip=augment.hflip,
        rand_augment=augment.rand_augment,
        erase_prob=augment.erase_prob,
        erase_mode=augment.erase_mode,
        erase_count=augment.erase_count,
        **normalisation(augment, arch.in_channels),
    )


def eval_transform(config: StageConfig) -> EvalTransform:
    """The preprocessing of a stage's validation."""
    arch, augment = config.architecture, config.augment
    return EvalTransform(
        arch.image_size,
        crop_ratio=config.evaluation.crop_ratio,
        channels=arch.in_channels,
        interpolation=augment.interpolation,
        **normalisation(augment, arch.in_channels),
    )


def training_positions(images: int, config: StageConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training set to train on, and rows held out to select on (empty unless select_on is minival)."""
    if config.evaluation.select_on == "val":
        return np.arange(images), np.arange(0)
    shuffled = holdout_rng(config.seed).permutation(images)
    held_out = config.evaluation.minival_images
    return np.sort(shuffled[held_out:]), np.sort(shuffled[:held_out])


class TrainLoader:
    """Mixed and augmented training batches of one device.

    Args:
        dataset, config, runtime: what to read, how to change it, with how many workers.
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
        self.transform = train_transform(config)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """The optimizer steps of an epoch from `first_step` on: a list of micro-batches for each. Earlier rows are not read."""
        order = order_rng(self.config.seed, epoch).permutation(self.positions)
        steps = range(first_step, self.steps_per_epoch)
        local = np.concatenate(self.micro_rows)
        wanted = [order[step * self.global_batch + local] for step in steps]
        if not wanted:
            return
        task = TrainTask(self.transform, self.config.seed, epoch)
        with workers(self.runtime, task) as submit:
            samples = in_order(submit, read_rows(self.dataset, "train", np.concatenate(wanted)), 2 * len(local))
            yield from prefetched((self._step(samples, epoch, step) for step in steps), self.runtime.prefetch)

    def _step(self, samples: Iterator, epoch: int, step: int) -> list[Batch]:
        return [self._micro_batch(list(islice(samples, len(rows))), rows, epoch, step) for rows in self.micro_rows]

    def _micro_batch(self, samples: list, rows: np.ndarray, epoch: int, step: int) -> Batch:
        images = np.stack([image for image, _ in samples])
        labels = np.asarray([label for _, label in samples])
        augment, classes = self.config.augment, self.config.num_classes
        if not self.mixes:
            return Batch(images, one_hot(labels, classes, augment.label_smoothing), rows)
        plan = self._mix_plan(epoch, step).rows(rows)
        images, targets = apply_mixup(images, labels, plan, classes, augment.label_smoothing)
        return Batch(images, targets, rows)

    def _mix_plan(self, epoch: int, step: int):
        """The draws of all groups of the global batch, one after the other."""
        augment, size = self.config.augment, self.config.image_size
        plans = [
            plan_mixup(
                batch_rng(self.config.seed, epoch, step, group),
                self.group,
                (size, size),
                mixup_alpha=augment.mixup,
                cutmix_alpha=augment.cutmix,
                prob=augment.mixup_prob,
                switch_prob=augment.switch_prob,
                mode=augment.mixup_mode,
            )
            for group in range(self.global_batch // self.group)
        ]
        return type(plans[0]).concatenate(plans)


@dataclass(frozen=True)
class TrainTask:
    """One training sample: (index, label, bytes) -> (image, label)."""

    transform: TrainTransform
    seed: int
    epoch: int

    def __call__(self, row: tuple[int, int, bytes]) -> tuple[np.ndarray, int]:
        index, label, data = row
        return self.transform(data, sample_rng(self.seed, self.epoch, index)), label


@dataclass(frozen=True)
class EvalTask:
    """One validation sample: (index, label, bytes) -> (image, label)."""

    transform: EvalTransform

    def __call__(self, row: tuple[int, int, bytes]) -> tuple[np.ndarray, int]:
        _, label, data = row
        return self.transform(data), label


def eval_batches(
    rows: Iterable[tuple[int, int, bytes]], task: EvalTask, runtime: Runtime
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(images (n, C, H, W) float32, labels (n,)) in the order of `rows`; the last batch may be shorter."""
    size = runtime.eval_batch_size
    with workers(runtime, task) as submit:
        samples = in_order(submit, rows, 2 * size)
        while batch := list(islice(samples, size)):
            yield np.stack([image for image, _ in batch]), np.asarray([label for _, label in batch])


@contextlib.contextmanager
def workers(runtime: Runtime, task: Callable) -> Iterator[Callable[[object], Future]]:
    """A function that hands a row to the workers. Work not yet begun is dropped at the end."""
    executor: Executor
    if runtime.worker_kind == "thread":
        executor = ThreadPoolExecutor(runtime.workers, thread_name_prefix="loader")
    else:  # not fork: MindSpore's threads do not survive it
        context = multiprocessing.get_context("forkserver")
        executor = ProcessPoolExecutor(runtime.workers, context)
    try:
        yield lambda row: executor.submit(task, row)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def in_order(submit: Callable[[object], Future], rows: Iterable, ahead: int) -> Iterator:
    """Results in the order of the rows, at most `ahead` of them under way."""
    pending: deque[Future] = deque()
    for row in rows:
        pending.append(submit(row))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def prefetched(items: Iterator, depth: int) -> Iterator:
    """The same items, made by a thread up to `depth` ahead; its errors are raised here, and it ends when nobody reads on."""
    ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def put(item) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce():
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
        thread.join()
