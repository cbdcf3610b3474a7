"""One stage from its files to its files: lease, identity, training, checkpoint, record.

What a job does is decided here by content, not by why it was started. A state of the same identity is continued; if it is the last
one of a complete stage, there is nothing left to train, and checkpoint and record are written again from it, with the same bits.
Only a state of another identity, or a repetition that was asked for (`cswin.train.repeat`), begins anew.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cswin.atomic import atomic_path
from cswin.checkpoint import CheckpointRecord, file_sha256, save_checkpoint
from cswin.config.resolve import StageConfig, load_runtime, load_stage
from cswin.config.settings import Runtime
from cswin.data.images.preprocessing import Preprocessing
from cswin.data.store.dataset import Dataset
from cswin.distributed.backend import Backend, backend_of
from cswin.distributed.ranks import Ranks
from cswin.distributed.stopping import EXIT_INTERRUPTED, Stopping
from cswin.errors import UserError
from cswin.provenance import git_commit, versions
from cswin.train.attempts import ATTEMPTS, COMPLETE, Attempt, Signs
from cswin.train.graph_cache import graph_cache, graphs_key
from cswin.train.handover import Start, prepare_start
from cswin.train.history import HISTORY
from cswin.train.identity import differences, fingerprint
from cswin.train.lease import Lease
from cswin.train.repeat import CHECKPOINT, RECORD, accept, check_previous
from cswin.train.state import StateFolder


@dataclass(frozen=True)
class StageFiles:
    """Where a stage reads and writes.

    Attributes:
        config, runtime: resolved configuration files.
        dataset: dataset.json of the converted images.
        folder: the stage's folder; receives checkpoint.safetensors and record.json at the end, history.jsonl, attempts.jsonl
            and state/ on the way.
        previous: checkpoint of the stage before, or the pretrained one.
    """

    config: Path
    runtime: Path
    dataset: Path
    folder: Path
    previous: Path | None


def check_stage(files: StageFiles) -> tuple[StageConfig, Runtime, Dataset]:
    """What can be refused before anything is computed.

    Raises:
        UserError: if a file is missing or the files do not belong together.
    """
    config, runtime = load_stage(files.config), load_runtime(files.runtime)
    dataset = Dataset.load(files.dataset)
    if len(dataset.class_names) != config.num_classes:
        raise UserError(
            f"{files.dataset}: holds {len(dataset.class_names)} classes, the configuration says data.classes: "
            f"{config.num_classes}; set it to what the data hold"
        )
    if (config.previous or config.pretrained) and files.previous is None:
        raise UserError(
            f"stage {config.stage} starts from {config.previous or config.pretrained}: give its checkpoint (--previous)"
        )
    return config, runtime, dataset


def run_stage(files: StageFiles, stopping: Stopping, progress, say, ranks: Ranks) -> int:
    """Train a stage, or go on where it was interrupted, or write a complete stage's files again from its state.

    Of several ranks the first writes all files; the others follow it.

    Args:
        stopping: when to stop early.
        progress: function that gives a progress display for (steps of the stage, steps done).
        say: receives lines for the log.
        ranks: this process among those that train the stage.

    Returns:
        0 when the stage is complete, `EXIT_INTERRUPTED` when it was stopped on request and its state is saved.

    Raises:
        UserError: for everything that the user can put right.
    """
    config, runtime, dataset = check_stage(files)
    if not ranks.first:
        stopping.listen()
        backend_of(runtime, ranks.device).require_training(config.optimizer.amp_level, config.optimizer.amp_dtype)
        return _follow(files, config, runtime, dataset, stopping, progress, say, ranks)
    signs = Signs.read(files.folder)
    with Lease(files.folder, runtime.lease_timeout, say) as lease:
        stopping.listen()
        backend = backend_of(runtime, ranks.device)
        backend.require_training(config.optimizer.amp_level, config.optimizer.amp_dtype)
        if files.previous is not None:
            accept(files.previous.parent / "state")
        identity = fingerprint(config, dataset.manifest_hash, files.previous)
        if config.previous:
            check_previous(files.previous, identity["input_checkpoint"])
        retire_foreign_state(files.folder, runtime.keep_states, identity, say)
        StateFolder(files.folder / "state", runtime.keep_states, say).reopen()
        for name in (CHECKPOINT, RECORD):
            (files.folder / name).unlink(missing_ok=True)
        with Attempt(files.folder / ATTEMPTS, _provenance(files, runtime, identity, backend), signs) as attempt:
            return _train(files, config, runtime, dataset, identity, stopping, lease, attempt, progress, say, ranks)


def _provenance(files: StageFiles, runtime: Runtime, identity: dict[str, Any], backend: Backend) -> dict[str, Any]:
    """What an attempt is: enough to know, and to repeat, what it did. `identity` holds the resolved configuration."""
    read = {"config": files.config, "runtime": files.runtime, "dataset": files.dataset}
    inputs = {name: {"path": str(path), "sha256": file_sha256(path)} for name, path in read.items()}
    if files.previous is not None:
        inputs["checkpoint"] = {"path": str(files.previous), "sha256": identity["input_checkpoint"]}
    return {
        "command": shlex.join(sys.argv),
        "folder": str(Path.cwd()),
        "versions": versions(),
        "git": git_commit(),
        "device_target": runtime.device_target,
        "backend": backend.record(),
        "devices": runtime.devices,
        "inputs": inputs,
        "runtime": runtime.model_dump(mode="json"),
        "identity": identity,
    }


def _follow(files, config, runtime, dataset, stopping, progress, say, ranks) -> int:
    """Train as one of the ranks that write nothing: the start comes from the first rank."""
    from cswin.train.trainer import Interrupted, Trainer

    identity = fingerprint(config, dataset.manifest_hash, files.previous) if runtime.graph_cache else {}
    trainer = Trainer(config, runtime, dataset, Start(), files.folder, {}, stopping, progress, say, None, ranks)
    try:
        with _graph_cache(files, runtime, identity, ranks):
            trainer.run()
    except Interrupted as reason:
        say(str(reason))
        return EXIT_INTERRUPTED
    return 0


def _train(files, config, runtime, dataset, identity, stopping, lease, attempt, progress, say, ranks) -> int:
    from cswin.train.trainer import Interrupted, Trainer, checkpoint_of

    start = prepare_start(config, files.previous, dataset.class_names)
    if "head" in start.record:
        say(f"{files.previous}: head {start.record['head']}")
    trainer = Trainer(config, runtime, dataset, start, files.folder, identity, stopping, progress, say, lease.check, ranks)
    try:
        with _graph_cache(files, runtime, identity, ranks):
            best = trainer.run(attempt)
    except Interrupted as reason:
        attempt.end(str(reason), trainer.step, saving=trainer.save_figures())
        say(f"{reason}. The same command goes on from there (exit code {EXIT_INTERRUPTED}).")
        return EXIT_INTERRUPTED
    lease.check()
    # A checkpoint that is made again from a complete state is the same file, whatever code makes it: later stages go by its hash.
    made_by = trainer.states.completed.get("made_by") or {"git": git_commit(), "versions": versions()}
    record = _checkpoint_record(config, dataset, identity, best, made_by)
    sha = save_checkpoint(files.folder / CHECKPOINT, checkpoint_of(best, record))
    facts = {
        "stage": config.stage,
        "checkpoint": CHECKPOINT,
        "sha256": sha,
        "best_epoch": best.epoch,
        "figures": best.figures,
        "select_on": config.evaluation.select_on,
        "manifest": dataset.manifest_hash,
    }
    with atomic_path(files.folder / RECORD, lease.check) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    trainer.states.mark_complete(facts | {"made_by": made_by})
    attempt.end(COMPLETE, trainer.last_step, saving=trainer.save_figures())
    return 0


@contextlib.contextmanager
def _graph_cache(files: StageFiles, runtime: Runtime, identity: dict[str, Any], ranks: Ranks):
    """The cache of compiled graphs, where it is wanted; an interruption on request is a good end."""
    from cswin.train.trainer import Interrupted

    if not runtime.graph_cache:
        yield
        return
    interrupted, backend = None, backend_of(runtime, ranks.device)
    compiled_by = {"soc": backend.soc, **backend.jit_options}
    with graph_cache(files.folder, graphs_key(identity | {"backend": compiled_by}, runtime), ranks.first):
        try:
            yield
        except Interrupted as reason:
            interrupted = reason
    if interrupted:
        raise interrupted


def _checkpoint_record(config: StageConfig, dataset: Dataset, identity: dict[str, Any], best, made_by) -> CheckpointRecord:
    provenance = {
        "config": config.model_dump(mode="json"),
        "stage": config.stage,
        "epoch": best.epoch,
        "figures": best.figures,
        "manifest": dataset.manifest_hash,
        "input_checkpoint": identity["input_checkpoint"],
        **made_by,
    }
    return CheckpointRecord(config.architecture, dataset.class_names, Preprocessing.of_stage(config), provenance)


def retire_foreign_state(folder: Path, keep: int, identity: dict[str, Any], say) -> None:
    """Set a state aside that belongs to another computation, or whose repetition was asked for."""
    states = StateFolder(folder / "state", keep, say)
    if not states.path.exists():
        return
    history, inside = folder / HISTORY, states.path / HISTORY
    if inside.exists():  # killed while it was set aside
        inside.rename(history)
    state = states.load()
    changed = differences(state.meta["fingerprint"], identity) if state else []
    if states.repeat:
        why = "the stage is complete, and to train it again from the start was asked for"
    elif state is None:
        why = "it holds no whole state"
    elif changed:
        why = "it belongs to another computation"
    else:
        return
    if history.exists():
        history.rename(inside)
    states.set_aside("; ".join([why, *changed]))
