"""The run of a stage: lease, identity, state, history and attempts in one folder.

The training state is in <stage>/state, which no rule of the workflow declares. `StageRun` takes the lease of the folder, decides
whether to resume (`cswin.run.decision`), and implements `cswin.train.state.Run` for the trainer. `run_stage` runs a whole stage.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from cswin.atomic import atomic_path
from cswin.checkpoint import Checkpoint, CheckpointRecord, save_checkpoint
from cswin.data.images.preprocessing import Preprocessing
from cswin.distributed.backend import backend_of
from cswin.distributed.graph_cache import graph_cache
from cswin.distributed.ranks import Ranks
from cswin.distributed.stopping import EXIT_INTERRUPTED, Stopping
from cswin.layout import CHECKPOINT, StageLayout
from cswin.progress import Console
from cswin.provenance import git_commit, versions
from cswin.run.attempts import FINISHED, Attempt, Signs
from cswin.run.decision import decide
from cswin.run.handover import prepare_start
from cswin.run.history import History
from cswin.run.lease import Lease
from cswin.run.repeat import check_previous
from cswin.run.stage import Stage, StageFiles
from cswin.run.states import StateFolder
from cswin.train.state import Start, State


def run_stage(files: StageFiles, stopping: Stopping, console: Console, ranks: Ranks) -> int:
    """Train a stage, resume it, or write a complete stage's files again from its state. Only the first rank writes files.

    Returns:
        0 if the stage is complete, `EXIT_INTERRUPTED` if it was stopped on request and its state is saved.

    Raises:
        UserError: for errors that the user can fix.
    """
    stage = Stage.read(files)
    with (StageRun if ranks.first else FollowerRun)(stage, stopping, console, ranks.device) as run:
        from cswin.train.trainer import Interrupted, Trainer  # imports MindSpore, which takes seconds: after the lease

        trainer = Trainer(stage.config, stage.runtime, stage.dataset, run, ranks)
        with graph_cache(trainer.graphs, stage.runtime.caches_graphs) as run.keep_graphs:
            try:
                best = trainer.train()
            except Interrupted as reason:
                run.interrupted(str(reason), trainer.step)
                return EXIT_INTERRUPTED
        if ranks.first:
            run.complete(best, trainer.last_step)
    return 0


class FollowerRun:
    """The run on a rank that writes no files.

    Args:
        stage: the stage to train.
        stopping: decides when to stop early.
        console: receives messages and progress.
        device: number of this rank's device on its node.
    """

    def __init__(self, stage: Stage, stopping: Stopping, console: Console, device: int):
        self.stage, self.stopping, self.console, self.device = stage, stopping, console, device
        self.display = None

    def __enter__(self) -> FollowerRun:
        self.stopping.listen()
        optimizer = self.stage.config.optimizer
        self.backend = backend_of(self.stage.runtime, self.device)
        self.backend.require_training(optimizer.amp_level, optimizer.amp_dtype)
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def say(self, line: str) -> None:
        self.console.say(line)

    def begin(self, step: int, first_step: int, last_step: int) -> None:
        self.display = self.console.progress("train", last_step - first_step, "steps", step - first_step)

    def show(self, steps: int, *, epoch: int, loss: float, lr: float, images_per_s: float) -> None:
        details = {"epoch": str(epoch), "loss": f"{loss:.4f}", "lr": f"{lr:.3g}", "images": f"{images_per_s:,.0f}/s"}
        self.display.update(steps, **details)
        self.keep_graphs()  # all are compiled once a step is done

    def record(self, rows: Iterable[dict]) -> None:
        """Nothing: the first rank does."""

    def save(self, make: Callable[[], State], background: bool = True) -> None:
        """Nothing: the first rank does."""

    def interrupted(self, reason: str, step: int) -> None:
        """Training was stopped on request."""
        self.say(reason)

    def close(self) -> None:
        if self.display is not None:
            self.display.close()
            self.display = None


class StageRun(FollowerRun):
    """The run on the first rank, which is the only writer of the stage's folder while the context lasts.

    Raises (on entering):
        UserError: if another trainer is at work there, or the stage cannot be resumed from its files.
    """

    def __enter__(self) -> StageRun:
        folder, runtime = self.stage.files.folder, self.stage.runtime
        self.layout, self.history = StageLayout(folder), None
        signs = Signs.read(folder)
        with contextlib.ExitStack() as stack:
            self.lease = stack.enter_context(Lease(folder, runtime.lease_timeout, self.say))
            super().__enter__()
            identity = self.stage.identity
            if self.stage.config.previous:
                check_previous(self.stage.files.previous, identity["input_checkpoint"])
            self.states = StateFolder(self.layout.state, runtime.keep_states, self.say, self.lease.check)
            self.states.bring_history_back()
            self.decision = decide(self.states, identity)
            if self.decision.aside:
                self.states.set_aside(self.decision.aside)
            self.states.reopen()
            for file in (self.layout.checkpoint, self.layout.record):
                file.unlink(missing_ok=True)
            facts = self.stage.provenance() | {"backend": self.backend.record()}
            self.attempt = stack.enter_context(Attempt(self.layout.attempts, facts, signs))
            stack.callback(self.close)
            self._leave = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self._leave.__exit__(*error)

    def start(self) -> Start:
        start = prepare_start(self.stage.config, self.stage.files.previous, self.stage.dataset.class_names)
        if "head" in start.record:
            self.say(f"{self.stage.files.previous}: head {start.record['head']}")
        return start

    def resume(self, first_step: int) -> State | None:
        state = self.decision.state
        self.kept = {"fingerprint": self.stage.identity, "versions_changed": []}
        if state is not None:
            self.kept["versions_changed"] = state.meta.get("versions_changed", [])
            self.stopping.took(state.meta["save_seconds"])
        if change := self.decision.versions:
            self.kept["versions_changed"] = [*self.kept["versions_changed"], change]
            self.say(f"the versions of the code changed at step {change['step']}, as accepted")
        self.decision = None  # frees the arrays, which the trainer has now
        self.history = self._history(state.meta["history_bytes"] if state else 0, first_step)
        return state

    def begin(self, step: int, first_step: int, last_step: int) -> None:
        self.attempt.resumed(step, first_step, last_step)
        super().begin(step, first_step, last_step)

    def record(self, rows: Iterable[dict]) -> None:
        self.history.append(rows)
        self.states.check()

    def save(self, make: Callable[[], State], background: bool = True) -> None:
        began, figures = time.monotonic(), self.states.figures
        state = make()
        copied = time.monotonic() - began
        state.meta |= self.kept | {"history_bytes": self.history.size(), "save_seconds": figures.slowest}
        self.states.save(state, background)
        figures.held_up += time.monotonic() - began
        self.stopping.took(copied + figures.slowest)

    def interrupted(self, reason: str, step: int) -> None:
        self.attempt.end(reason, step, saving=asdict(self.states.figures))
        self.say(f"{reason}. The same command resumes from there (exit code {EXIT_INTERRUPTED}).")

    def complete(self, best, last_step: int) -> None:
        """Write checkpoint and record of a complete stage, from its best epoch."""
        stage = self.stage
        self.lease.check()
        # A checkpoint that is written again must be the same file, whatever code writes it: its hash is in later stages' identities.
        made_by = self.states.completed.get("made_by") or {"git": git_commit(), "versions": versions()}
        changed = {"versions_changed": changes} if (changes := self.kept["versions_changed"]) else {}
        made_by |= changed
        facts = {
            "stage": stage.config.stage,
            "checkpoint": CHECKPOINT,
            "sha256": save_checkpoint(self.layout.checkpoint, _checkpoint(stage, best, made_by)),
            "best_epoch": best.epoch,
            "figures": best.figures,
            "select_on": stage.config.evaluation.select_on,
            "manifest": stage.dataset.manifest_hash,
            **changed,
        }
        with atomic_path(self.layout.record, self.lease.check) as temporary:
            temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        self.states.mark_complete(facts | {"made_by": made_by})
        self.attempt.end(FINISHED, last_step, saving=asdict(self.states.figures))

    def close(self) -> None:
        try:
            self.states.wait()
            if self.history is not None:
                self.history.close()
        finally:
            super().close()

    def _history(self, size: int, first_step: int) -> History:
        from cswin.run.events import EventFile

        wanted = self.stage.runtime.tensorboard
        events = EventFile(self.layout.folder, first_step, self.say) if wanted else None
        return History(self.layout.history, size, events, self.lease.check)


def _checkpoint(stage: Stage, best, made_by: Mapping[str, Any]) -> Checkpoint:
    provenance = {
        "config": stage.config.model_dump(mode="json"),
        "stage": stage.config.stage,
        "epoch": best.epoch,
        "figures": best.figures,
        "manifest": stage.dataset.manifest_hash,
        "input_checkpoint": stage.identity["input_checkpoint"],
        **made_by,
    }
    record = CheckpointRecord(
        stage.config.architecture, stage.dataset.class_names, Preprocessing.of_stage(stage.config), provenance
    )
    weights = {k: v for k, v in best.weights.items() if not k.startswith("ema.")}
    ema = {k.removeprefix("ema."): v for k, v in best.weights.items() if k.startswith("ema.")}
    return Checkpoint(record, weights, ema)
