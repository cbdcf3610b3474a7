"""The interface between the trainer and its run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from cswin.distributed.stopping import Stopping


@dataclass
class State:
    """A state from which training can be resumed.

    Attributes:
        step: completed optimizer steps on the whole schedule; with `meta["epochs_done"]` the position in the schedule. It replaces
            a random state: every random number is a function of (seed, epoch, step or sample), see `cswin.data.loader.rng`.
        arrays: the training step's arrays by name (weights, `moment1.`, `moment2.`, `ema.`, loss scale, counters), and the
            best weights so far with the prefix `best.`.
        meta: completed epochs and the best epoch so far, and the run's own values for resumption. Plain JSON values.
    """

    step: int
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


@dataclass(frozen=True)
class Start:
    """The start of a stage: values of the training step before its first step.

    Attributes:
        weights: by parameter name; missing names keep their initial values.
        everything: weights, moments, EMA, loss scale and update count by parameter name (carry: all).
        record: what was carried over, and from which file, for the stage's history.
    """

    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    everything: Mapping[str, np.ndarray] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=lambda: {"carry": "nothing", "from": "fresh weights"})

    def state(self, fresh: Mapping[str, np.ndarray], initial: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays of the training step by name. The EMA starts at the weights, unless it was carried over.

        Args:
            fresh: the arrays of a new training step.
            initial: initial values of the weights.
        """
        weights = {**initial, **self.weights}
        averages = {f"ema.{name}": value for name, value in weights.items()}
        return {**fresh, **weights, **averages, **self.everything}


class Run(Protocol):
    """The trainer's interface to its run, which is implemented in `cswin.run.stage_run`.

    Attributes:
        stopping: called after each step; decides whether to stop.
    """

    stopping: Stopping

    def resume(self, first_step: int) -> State | None:
        """The state to resume from; None if the stage starts at `first_step`. Call it once: the run keeps no copy."""

    def start(self) -> Start:
        """The start of the stage."""

    def begin(self, step: int, first_step: int, last_step: int) -> None:
        """Training begins at `step`; the stage has the steps from `first_step` to `last_step`."""

    def show(self, steps: int, **figures: float) -> None:
        """`steps` more are complete; figures for the progress display."""

    def say(self, line: str) -> None:
        """Write a line to the log."""

    def record(self, rows: Iterable[dict]) -> None:
        """Write rows to the history. Raises UserError if they cannot be written, or if an earlier save has failed."""

    def save(self, make: Callable[[], State], background: bool = True) -> None:
        """Write the state that `make` returns; in the background unless told otherwise. Raises UserError if it cannot be written."""

    def close(self) -> None:
        """Wait for the current save. No row and no state follows."""
