"""What the trainer gives to its run and gets back from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from cswin.distributed.stopping import Stopping


@dataclass
class State:
    """A point in training, from which it can be resumed.

    Attributes:
        step: optimizer steps done on the whole schedule; with `meta["epochs_done"]` the place in the schedule. It is the random
            state too: every random number is a function of (seed, epoch, step or sample), see `cswin.data.loader.rng`.
        arrays: the training step's arrays by name (weights, `moment1.`, `moment2.`, `ema.`, loss scale, counters), and the
            best weights so far behind `best.`.
        meta: epochs done and the best epoch so far; the run adds what it needs to resume. Plain JSON values.
    """

    step: int
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


@dataclass(frozen=True)
class Start:
    """What is put into the training step before its first step.

    Attributes:
        weights: by parameter name; names that are left out keep their initial values.
        everything: moments, EMA, loss scale and update count by parameter name (carry: all).
        record: what was carried from where, for the stage's history.
    """

    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    everything: Mapping[str, np.ndarray] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=lambda: {"carry": "nothing", "from": "fresh weights"})

    def state(self, fresh: Mapping[str, np.ndarray], initial: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the training step begins with, by name; without a carried EMA, it starts at the weights.

        Args:
            fresh: the state of a training step that has not begun.
            initial: start values of the weights.
        """
        weights = {**initial, **self.weights}
        averages = {f"ema.{name}": value for name, value in weights.items()}
        return {**fresh, **weights, **averages, **self.everything}


class Run(Protocol):
    """All that the trainer knows of where its stage is kept; see `cswin.run.stage_run`.

    Attributes:
        stopping: asked after each step whether to stop.
    """

    stopping: Stopping

    def resume(self, first_step: int) -> State | None:
        """The state to resume from; None where the stage begins, at `first_step`. To be called once: the run keeps no copy."""

    def start(self) -> Start:
        """What the stage begins with."""

    def begin(self, step: int, first_step: int, last_step: int) -> None:
        """Training goes on from `step`; the stage has the steps from `first_step` to `last_step`."""

    def show(self, steps: int, **figures: float) -> None:
        """`steps` more are done; figures for the progress display."""

    def say(self, line: str) -> None:
        """A line for the log."""

    def record(self, rows: Iterable[dict]) -> None:
        """Rows for the history. Raises UserError if they cannot be written, or if an earlier save has failed."""

    def save(self, make: Callable[[], State], background: bool = True) -> None:
        """Write the state that `make` returns; in the background unless told otherwise. Raises UserError if it cannot be written."""

    def close(self) -> None:
        """Wait for the save under way; no row and no state follows."""
