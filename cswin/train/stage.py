"""One stage from its files to its files: lease, identity, training, checkpoint, record."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cswin.atomic import atomic_path
from cswin.checkpoint import CheckpointRecord, Preprocessing, save_checkpoint
from cswin.config.resolve import StageConfig, load_runtime, load_stage
from cswin.data.dataset import Dataset
from cswin.data.loader import normalisation
from cswin.device import select_device
from cswin.errors import UserError
from cswin.provenance import git_commit, versions
from cswin.train.attempts import Attempt
from cswin.train.handover import prepare_start
from cswin.train.identity import differences, fingerprint
from cswin.train.lease import Lease
from cswin.train.state import StateFolder, accept
from cswin.train.stopping import EXIT_INTERRUPTED, Stopping

CHECKPOINT, RECORD, HISTORY = "checkpoint.safetensors", "record.json", "history.jsonl"


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


def run_stage(files: StageFiles, max_runtime: float | None, progress, say) -> int:
    """Train a stage, or go on where it was interrupted.

    Args:
        progress: function that gives a progress display for (steps of the stage, steps done).
        say: receives lines for the log.

    Returns:
        0 when the stage is complete, `EXIT_INTERRUPTED` when it was stopped on request and its state is saved.

    Raises:
        UserError: for everything that the user can put right.
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
    stopping = Stopping(max_runtime)
    with Lease(files.folder, runtime.lease_timeout, say) as lease:
        stopping.listen()
        select_device(runtime.device_target)
        if files.previous is not None:
            accept(files.previous.parent / "state")
        identity = fingerprint(config, dataset.manifest_hash, files.previous)
        retire_foreign_state(files.folder, runtime.keep_states, identity, say)
        for name in (CHECKPOINT, RECORD):
            (files.folder / name).unlink(missing_ok=True)
        attempt = Attempt(
            files.folder / "attempts.jsonl",
            {
                "command": shlex.join(sys.argv),
                "versions": versions(),
                "git": git_commit(),
                "devices": runtime.devices,
                "identity": identity,
            },
        )
        with attempt:
            return _train(files, config, runtime, dataset, identity, stopping, lease, attempt, progress, say)


def _train(files, config, runtime, dataset, identity, stopping, lease, attempt, progress, say) -> int:
    from cswin.train.trainer import Interrupted, Trainer, checkpoint_of

    start = prepare_start(config, files.previous)
    trainer = Trainer(config, runtime, dataset, start, files.folder, identity, stopping, progress, say, lease.check)
    try:
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
    attempt.end("complete", trainer.last_step, saving=trainer.save_figures())
    return 0


def _checkpoint_record(config: StageConfig, dataset: Dataset, identity: dict[str, Any], best, made_by) -> CheckpointRecord:
    arch = config.architecture
    preprocessing = Preprocessing(
        arch.image_size,
        config.evaluation.crop_ratio,
        interpolation=config.augment.interpolation,
        channels=arch.in_channels,
        **normalisation(config.augment, arch.in_channels),
    )
    provenance = {
        "config": config.model_dump(mode="json"),
        "stage": config.stage,
        "epoch": best.epoch,
        "figures": best.figures,
        "manifest": dataset.manifest_hash,
        "input_checkpoint": identity["input_checkpoint"],
        **made_by,
    }
    return CheckpointRecord(arch, dataset.class_names, preprocessing, provenance)


def retire_foreign_state(folder: Path, keep: int, identity: dict[str, Any], say) -> None:
    """Set a state aside that belongs to another computation, or to one that has ended and been used."""
    states = StateFolder(folder / "state", keep, say)
    if not states.path.exists():
        return
    history, inside = folder / HISTORY, states.path / HISTORY
    if inside.exists():  # killed while it was set aside
        inside.rename(history)
    state = states.load()
    changed = differences(state.meta["fingerprint"], identity) if state else []
    if states.accepted:
        why = "the stage was complete and its result in use, so it is trained again from the start"
    elif state is None:
        why = "it holds no whole state"
    elif changed:
        why = "it belongs to another computation"
    else:
        return
    if history.exists():
        history.rename(inside)
    states.set_aside("; ".join([why, *changed]))
