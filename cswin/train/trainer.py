"""The training of one stage: start or resume, loop, save, validate, finish. Read it from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import mindspore as ms
import numpy as np

from cswin.config.resolve import StageConfig
from cswin.config.runtime import Runtime
from cswin.data.images.evaluation import EvalTransform
from cswin.data.images.preprocessing import Preprocessing
from cswin.data.loader.batches import EvalTask, TrainLoader, eval_batches, training_positions
from cswin.data.loader.rng import drop_path_rng, init_rng
from cswin.data.store.dataset import Dataset, read_rows
from cswin.distributed.backend import Backend, backend_of
from cswin.distributed.ranks import ALONE, Ranks
from cswin.errors import UserError
from cswin.evaluate import gathered, judge
from cswin.inference import Predictor
from cswin.model.cswin import CSWin
from cswin.model.drop_path import drop_path_factors, drop_path_rates
from cswin.model.precision import precision
from cswin.model.weights import initial_weights
from cswin.predictions import WEIGHT_SETS
from cswin.train.schedule import learning_rates
from cswin.train.state import Run, State
from cswin.train.step import TrainStep


def stage_step(config: StageConfig, runtime: Runtime, rates: np.ndarray, devices: int, backend: Backend) -> TrainStep:
    """The training step of a stage, not compiled yet; `rates` as for `TrainStep`."""
    formats = precision(config.optimizer.amp_level, config.optimizer.amp_dtype)
    network = CSWin(config.architecture, formats, recompute=runtime.recompute)
    return TrainStep(network, config.optimizer, rates, devices, runtime.accumulation, backend)


def stage_predictor(config: StageConfig, runtime: Runtime, backend: Backend) -> Predictor:
    """What evaluates the weights of a stage while it is trained, not compiled yet."""
    formats = precision(config.optimizer.amp_level, config.optimizer.amp_dtype)
    return Predictor(config.architecture, runtime.eval_batch_size, formats, backend=backend)


class Interrupted(Exception):
    """Training was asked to stop and has saved its state; `str()` is the reason."""


@dataclass
class Best:
    """The best epoch so far. At the end of the stage it becomes the checkpoint."""

    epoch: int
    figures: dict
    weights: dict[str, np.ndarray]  # raw weights, and the EMA with the prefix "ema."


class Trainer:
    """One stage.

    Args:
        config: the stage's configuration.
        runtime: devices, workers and other settings that affect only speed.
        dataset: the images.
        run: keeps the stage's state, history and log.
        ranks: the processes of this training; all do the same steps, only the first reads and writes the run's files.

    Attributes:
        graphs: what determines the compiled graphs, for the cache.
    """

    def __init__(self, config: StageConfig, runtime: Runtime, dataset: Dataset, run: Run, ranks: Ranks = ALONE):
        self.config, self.runtime, self.dataset, self.run, self.ranks = config, runtime, dataset, run, ranks
        self.loader = TrainLoader(dataset, config, runtime, ranks.rank)
        self.per_epoch = self.loader.steps_per_epoch
        if self.per_epoch == 0:
            raise UserError(
                f"optimizer.global_batch: {config.optimizer.global_batch} is more than the {len(self.loader.positions)} "
                "training images; lower it (and runtime.batch_size)"
            )
        self.first_step, self.last_step = config.start_epoch * self.per_epoch, config.epochs * self.per_epoch
        rates = learning_rates(self.first_step, self.last_step, self.per_epoch, config.schedule, config.epochs)
        backend = backend_of(runtime, ranks.device)
        self.train_step = stage_step(config, runtime, rates, ranks.size, backend)
        self.predictor = stage_predictor(config, runtime, backend)
        self.drop_path_rates = drop_path_rates(config.model.drop_path, config.architecture.depth)
        self.best, self.epochs_done = None, config.start_epoch
        sizes = (
            ranks.size,
            ranks.rank,
            runtime.batch_size,
            runtime.accumulation,
            len(self.train_step.rates),
            runtime.recompute,
        )
        self.graphs = [self.predictor.graph, config.optimizer.model_dump(), sizes]

    def train(self) -> Best | None:
        """Train to the end of the stage. The first rank returns the stage's result.

        Raises:
            Interrupted: if asked to stop; the state is saved.
            UserError: if training cannot continue (loss not finite, disk full); the last good state is intact.
        """
        self.saved = time.monotonic()
        step = self._resume_or_begin() if self.ranks.first else 0
        step, self.epochs_done = self.ranks.follow_first((step, self.epochs_done), self.train_step.state)
        self.step = step
        self.predictor.compile()  # always first: MindSpore numbers cached graphs in the order of their compilation
        self.run.begin(step, self.first_step, self.last_step)
        try:
            if reason := self.ranks.agree(self.run.stopping.asked):
                self._interrupt(reason, step)
            for epoch in range(self.epochs_done, self.config.epochs):
                self._train_epoch(epoch, step)
                step = (epoch + 1) * self.per_epoch
                self._validate(epoch)
                self.epochs_done = epoch + 1
                self._save(step)
        finally:
            self.run.close()
        return self.best

    def _train_epoch(self, epoch: int, step: int) -> None:
        """The steps of an epoch from `step` (on the whole schedule) to its end."""
        pending, waited, started = [], 0.0, time.monotonic()
        batches = iter(self.loader.epoch(epoch, step - epoch * self.per_epoch))
        while True:
            asked = time.monotonic()
            micro_batches = next(batches, None)
            waited += time.monotonic() - asked
            if micro_batches is None:
                break
            pending.append(self.take_step(micro_batches, epoch, step))
            step += 1
            reason = self._reason_to_stop(step)
            due = time.monotonic() - self.saved > 60 * self.runtime.save_minutes
            if len(pending) == self.runtime.log_every or step % self.per_epoch == 0 or due or reason:
                self._log(pending, epoch, step, time.monotonic() - started, waited)
                pending, waited, started = [], 0.0, time.monotonic()
            if reason:
                self._interrupt(reason, step)
            if due:  # also at the end of an epoch, before the validation, which may take long
                self._save(step)

    def _reason_to_stop(self, step: int) -> str | None:
        """Called after each step. Several ranks agree only every few steps: all stop after the same step, and rarely wait."""
        if self.ranks.size > 1 and step % self.runtime.agree_every and step % self.per_epoch:
            return None
        return self.ranks.agree(self.run.stopping())

    def take_step(self, micro_batches: list, epoch: int, step: int) -> ms.Tensor:
        """One optimizer step; nothing is read back from the device."""
        rng = drop_path_rng(self.config.seed, epoch, step - epoch * self.per_epoch)
        factors = drop_path_factors(self.drop_path_rates, self.config.optimizer.global_batch, rng)
        inputs = [(ms.Tensor(b.images), ms.Tensor(b.targets), ms.Tensor(factors[:, b.columns])) for b in micro_batches]
        for batch in inputs[:-1]:
            self.train_step.accumulate(*batch)
        return self.train_step(*inputs[-1])

    def _log(self, pending: list[ms.Tensor], epoch: int, step: int, seconds: float, waited: float) -> None:
        """Read the figures of the last steps from the device, write them to the history, and stop if they are invalid."""
        rate = len(pending) * self.config.optimizer.global_batch / seconds
        rows = []
        for number, values in enumerate(pending, step - len(pending) + 1):
            figures = dict(zip(TrainStep.OUTPUTS, map(float, values.asnumpy()), strict=True))
            finite = {k: v if math.isfinite(v) else None for k, v in figures.items()}  # JSON has no NaN
            rows.append({"kind": "step", "step": number, "epoch": epoch, **finite})
        rows[-1] |= {"images_per_s": rate, "wait": waited / seconds, "seconds": seconds, "time": round(time.time(), 3)}
        self.run.record(rows)
        self.run.show(len(pending), epoch=epoch, loss=figures["loss"], lr=figures["lr"], images_per_s=rate)
        if skipped := int(sum(row["skipped"] for row in rows)):
            self.run.say(
                f"step {step}: {skipped} of the last {len(rows)} skipped, not finite; loss scale {figures['loss_scale']:g}"
            )
        bad = max(row["skipped_in_a_row"] for row in rows)  # the last row may be a good step after many bad ones
        if bad >= self.config.optimizer.max_bad_steps:
            raise UserError(
                f"the loss or its gradient was not finite for {bad:.0f} steps in a row (up to step {step}). The last good state is "
                "in the stage's folder. Lower schedule.base_lr or optimizer.loss_scale, or use amp_level O0"
            )
        self._check_loss_scale(rows)

    def _check_loss_scale(self, rows: list[dict]) -> None:
        """Stop if the loss scale is implausible: normal training overflows now and then, but not at every scale."""
        limit = self.config.optimizer.loss_scale_max
        for row in rows if self.train_step.scaled else ():
            if row["loss_scale"] >= limit:
                raise UserError(
                    f"step {row['step']}: the loss scale has grown to {limit:g} (optimizer.loss_scale_max). This device does not "
                    "report overflows, or all gradients are zero. The last good state is kept. Use amp_dtype bfloat16 or amp_level "
                    "O0 if the device has them"
                )
            if row["skipped"] and row["loss_scale"] <= 1:
                raise UserError(
                    f"step {row['step']}: the loss scale has fallen to 1 and the step still overflows. The last good state is kept. "
                    "Lower schedule.base_lr, or use amp_dtype bfloat16 or amp_level O0"
                )

    def _validate(self, epoch: int) -> None:
        """Evaluate raw and EMA weights if a validation is due, each rank on its part; update the best epoch."""
        settings = self.config.evaluation
        if (epoch + 1) % settings.every and epoch + 1 != self.config.epochs:
            return
        split, positions = self._validation_rows()
        weights = {which: self.train_step.named_weights(which) for which in WEIGHT_SETS}
        rows = read_rows(self.dataset, split, positions[self.ranks.part])
        rounds = math.ceil(math.ceil(len(positions) / self.ranks.size) / self.runtime.eval_batch_size)
        batches = eval_batches(rows, EvalTask(EvalTransform(Preprocessing.of_stage(self.config))), self.runtime)
        judged = judge(self.predictor, weights, self._unless_stopped(batches, rounds, (epoch + 1) * self.per_epoch))
        figures = {which: gathered(predictions, self.ranks).figures() for which, predictions in judged.items()}
        compared = self._compare_ranks(epoch)
        if not self.ranks.first:
            return
        row = {"kind": "epoch", "epoch": epoch, "step": (epoch + 1) * self.per_epoch, "on": settings.select_on}
        self.run.record([row | {"time": round(time.time(), 3)} | figures | compared])
        key = settings.select_by
        if settings.select == "last" or self.best is None or figures[key]["right1"] > self.best.figures[key]["right1"]:
            self.best = Best(epoch, figures, weights["raw"] | {f"ema.{k}": v for k, v in weights["ema"].items()})
        self.run.say(
            f"epoch {epoch}: top1 raw {figures['raw']['top1']:.2f} EMA {figures['ema']['top1']:.2f} "
            f"(best: epoch {self.best.epoch}, {key} {self.best.figures[key]['top1']:.2f})"
        )

    def _compare_ranks(self, epoch: int) -> dict[str, bool]:
        """For the history: whether all ranks have bit-identical parameters. Only those of the first rank are saved."""
        if self.ranks.size == 1:
            return {}
        equal = self.ranks.same(parameter.asnumpy() for parameter in self.train_step.state)
        if not equal:
            self.run.say(f"epoch {epoch}: the ranks' weights are no longer bit-identical; those of the first rank are saved")
        return {"ranks_equal": equal}

    def _unless_stopped(self, batches: Iterator, rounds: int, step: int) -> Iterator:
        """The same batches, unless training is asked to stop. An interrupted validation is repeated after resumption.

        All ranks check in each of `rounds`, the number of batches of the first rank; other ranks may have one less.
        """
        for _ in range(rounds):
            batch = next(batches, None)
            if reason := self.ranks.agree(self.run.stopping()):
                self._interrupt(reason, step)
            if batch is not None:
                yield batch

    def _interrupt(self, reason: str, step: int) -> NoReturn:
        if step != self.step:
            self._save(step, background=False)
        self.run.close()
        self.ranks.agree(None)  # no rank exits before the state is on the disk: srun may kill all ranks when one has exited
        raise Interrupted(f"{reason}; saved at step {step} of {self.last_step}")

    def _validation_rows(self) -> tuple[str, np.ndarray]:
        if self.config.evaluation.select_on == "val":
            return "val", np.arange(self.dataset.images("val"))
        return "train", training_positions(self.dataset.images("train"), self.config)[1]

    def _resume_or_begin(self) -> int:
        """Load the newest state, or the stage's start, into the training step. Returns the step from which to train."""
        state = self.run.resume(self.first_step)
        if state is None:
            initial = initial_weights(self.config.architecture, init_rng(self.config.seed))
            start = self.run.start()
            self.train_step.load(start.state(self.train_step.arrays(), initial))
            self.run.record([{"kind": "start", "step": self.first_step, "stage": self.config.stage, **start.record}])
            self._save(self.first_step, background=False)
            return self.first_step
        self.train_step.load(state.arrays)
        self.epochs_done = state.meta["epochs_done"]
        if state.meta["best"]:
            best = {k.removeprefix("best."): v for k, v in state.arrays.items() if k.startswith("best.")}
            self.best = Best(**state.meta["best"], weights=best)
        self.run.say(f"resuming from step {state.step} of {self.last_step}")
        self.step = state.step
        return state.step

    def _save(self, step: int, background: bool = True) -> None:
        self.step = step
        self.run.save(lambda: self._state(step), background)
        self.saved = time.monotonic()

    def _state(self, step: int) -> State:
        arrays, best = self.train_step.arrays(), None
        if self.best is not None:
            arrays |= {f"best.{name}": value for name, value in self.best.weights.items()}
            best = {"epoch": self.best.epoch, "figures": self.best.figures}
        return State(step, arrays, {"epochs_done": self.epochs_done, "best": best})
