"""What the checks of a run work with: its trainer with its first batches, and what is measured while it trains."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import psutil

from cswin.data.loader.batches import Batch
from cswin.data.loader.rng import init_rng
from cswin.distributed.ranks import Ranks
from cswin.model.weights import initial_weights
from cswin.run.handover import prepare_start
from cswin.run.stage import Stage
from cswin.train.step import TrainStep
from cswin.train.trainer import Trainer

SKIPPED = TrainStep.OUTPUTS.index("skipped")
BATCHES = 5  # kept in memory for steps without the loader


@dataclass(frozen=True)
class Site:
    """The run's own training step, loader and batches on this rank.

    Attributes:
        trainer: of the stage; only its parts are used.
        start: arrays of the training step before its first step.
        batches: micro-batches of the first steps.
        first_step: its seconds, with compilation.
        folder: for saved states; the same on all ranks.
    """

    trainer: Trainer
    start: dict[str, np.ndarray]
    batches: list[list[Batch]]
    first_step: float
    folder: Path

    @property
    def step(self) -> TrainStep:
        return self.trainer.train_step

    @property
    def ranks(self) -> Ranks:
        return self.trainer.ranks

    def restart(self) -> None:
        """Back to the start of the stage."""
        self.step.load(self.start, running=True)

    def take(self, number: int) -> bytes:
        """A step on the kept batch of that number: the bits of its figures."""
        return self.trainer.take_step(self.batches[number], self.trainer.config.start_epoch, number).asnumpy().tobytes()

    def digest(self) -> bytes:
        """Of all values that a step changes."""
        digest = hashlib.blake2b(digest_size=16)
        for parameter in self.step.state:
            digest.update(np.ascontiguousarray(parameter.asnumpy()).data)
        return digest.digest()

    def of_all(self, value: float) -> np.ndarray:
        """A number of every rank, on every rank: (ranks,) float64."""
        return self.ranks.gather(np.array([value], np.float64))


def prepare(stage: Stage, ranks: Ranks, folder: Path) -> Site:
    """Build the trainer as a stage does, and take its first step. Raises UserError if the stage cannot be started."""
    config = stage.config
    trainer = Trainer(config, stage.runtime, stage.dataset, None, ranks)  # its run is used in `train` only
    step = trainer.train_step
    start = prepare_start(config, stage.files.previous, stage.dataset.class_names)
    step.load(start.state(step.arrays(), initial_weights(config.architecture, init_rng(config.seed))))
    ranks.follow_first((0,), step.state)
    arrays = step.arrays()
    with closing(load(trainer)) as batches:
        kept = list(islice(batches, BATCHES))
    began = time.monotonic()
    trainer.take_step(kept[0], config.start_epoch, 0).asnumpy()
    return Site(trainer, arrays, kept, time.monotonic() - began, folder)


def load(trainer: Trainer) -> Iterator[list[Batch]]:
    """The batches of a stage from its first step on, from one epoch to the next."""
    for epoch in count(trainer.config.start_epoch):
        yield from trainer.loader.epoch(epoch)


@dataclass(frozen=True)
class Rates:
    """What was measured on this rank.

    Attributes:
        step, loader, both: seconds per step of the training step alone, of the loader alone, and of both together.
        wait, skipped: share of the last one in which the step waits for the loader; steps of it that were skipped.
        host: bytes of host memory, with the data workers.
    """

    step: float
    loader: float
    both: float
    wait: float
    skipped: int
    host: int


def measure(site: Site, steps: int) -> Rates:
    """Time the step alone, the loader alone, and `steps` of training proper from the start of the stage."""
    trainer, epoch = site.trainer, site.trainer.config.start_epoch
    began = time.monotonic()
    for number, micro_batches in enumerate(site.batches):
        values = trainer.take_step(micro_batches, epoch, number)
    values.asnumpy()  # steps are computed while the next ones are submitted
    step = (time.monotonic() - began) / BATCHES
    with closing(load(trainer)) as batches:
        next(batches)  # the start of the workers is not counted
        began = time.monotonic()
        for _ in islice(batches, steps):
            pass
        loader = (time.monotonic() - began) / steps
    site.restart()
    pending, waited = [], 0.0
    with closing(load(trainer)) as batches:
        micro_batches = next(batches)
        began = time.monotonic()
        for number in range(steps):
            pending.append(trainer.take_step(micro_batches, epoch, number))
            asked = time.monotonic()
            micro_batches = next(batches)
            waited += time.monotonic() - asked
        skipped = sum(int(values.asnumpy()[SKIPPED]) for values in pending)
        seconds, process = time.monotonic() - began, psutil.Process()
        host = sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))
    return Rates(step, loader, seconds / steps, waited / seconds, skipped, host)
