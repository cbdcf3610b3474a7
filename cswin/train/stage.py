"""One stage from its files to its files: lease, identity, training, checkpoint, record."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cswin.atomic import atomic_path
from cswin.checkpoint import CheckpointRecord, Preprocessing, save_checkpoint
from cswin.config.resolve import StageConfig, load_runtime, load_stage
from cswin.config.settings import Runtime
from cswin.data.dataset import Dataset
from cswin.data.loader import normalisation
from cswin.device import select_device
from cswin.errors import UserError
from cswin.provenance import git_commit, versions
from cswin.ranks import Ranks
from cswin.train.attempts import Attempt
from cswin.train.graph_cache import graph_cache, graphs_key
from cswin.train.handover import Start, prepare_start
from cswin.train.identity import differences, fingerprint
from cswin.train.lease import Lease
from cswin.train.state import StateFolder, accept
from cswin.train.stopping import EXIT_INTERRUPTED, Stopping

CHECKPOINT, RECORD = "checkpoint.safetensors", "record.json"


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
    """Train a stage, or go on where it was interrupted. Of several ranks the first writes all files; the others follow it.

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
    select_device(runtime.device_target, ranks.device)
    if not ranks.first:
        stopping.listen()
        return _follow(files, config, runtime, dataset, stopping, progress, say, ranks)
    with Lease(files.folder, runtime.lease_timeout):
        stopping.listen()
        if files.previous is not None:
            accept(files.previous.parent / "state")
        identity = fingerprint(config, dataset.manifest_hash, files.previous)
        _retire_foreign_state(files.folder, runtime.keep_states, identity, say)
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
            return _train(files, config, runtime, dataset, identity, stopping, attempt, progress, say, ranks)


def _follow(files, config, runtime, dataset, stopping, progress, say, ranks) -> int:
    """Train as one of the ranks that write nothing: the start comes from the first rank."""
    from cswin.train.trainer import Interrupted, Trainer

    identity = fingerprint(config, dataset.manifest_hash, files.previous) if runtime.graph_cache else {}
    trainer = Trainer(config, runtime, dataset, Start(), files.folder, {}, stopping, progress, say, ranks)
    try:
        with _graph_cache(files, runtime, identity, ranks):
            trainer.run()
    except Interrupted as reason:
        say(str(reason))
        return EXIT_INTERRUPTED
    return 0


def _train(files, config, runtime, dataset, identity, stopping, attempt, progress, say, ranks) -> int:
    from cswin.train.trainer import Interrupted, Trainer, checkpoint_of

    start = prepare_start(config, files.previous)
    trainer = Trainer(config, runtime, dataset, start, files.folder, identity, stopping, progress, say, ranks)
    try:
        with _graph_cache(files, runtime, identity, ranks):
            best = trainer.run(attempt)
    except Interrupted as reason:
        attempt.end(str(reason), trainer.step)
        say(f"{reason}. The same command goes on from there (exit code {EXIT_INTERRUPTED}).")
        return EXIT_INTERRUPTED
    record = _checkpoint_record(config, dataset, identity, best)
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
    with atomic_path(files.folder / RECORD) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    trainer.states.mark_complete(facts)
    attempt.end("complete", trainer.last_step)
    return 0


@contextlib.contextmanager
def _graph_cache(files: StageFiles, runtime: Runtime, identity: dict[str, Any], ranks: Ranks):
    """The cache of compiled graphs, where it is wanted; an interruption on request is a good end."""
    from cswin.train.trainer import Interrupted

    if not runtime.graph_cache:
        yield
        return
    interrupted = None
    with graph_cache(files.folder, graphs_key(identity, runtime), ranks.first):
        try:
            yield
        except Interrupted as reason:
            interrupted = reason
    if interrupted:
        raise interrupted


def _checkpoint_record(config: StageConfig, dataset: Dataset, identity: dict[str, Any], best) -> CheckpointRecord:
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
        "git": git_commit(),
        "versions": versions(),
    }
    return CheckpointRecord(arch, dataset.class_names, preprocessing, provenance)


def _retire_foreign_state(folder: Path, keep: int, identity: dict[str, Any], say) -> None:
    """Set a state aside that belongs to another computation, or to one that has ended and been used."""
    states = StateFolder(folder / "state", keep, say)
    if not states.path.exists():
        return
    if states.accepted:
        _set_aside(folder, states, "the stage was complete and its result in use, so it is trained again from the start")
        return
    state = states.load()
    if state is None:
        _set_aside(folder, states, "it holds no whole state")
    elif changed := differences(state.meta["fingerprint"], identity):
        _set_aside(folder, states, "it belongs to another computation: " + "; ".join(changed))


def _set_aside(folder: Path, states: StateFolder, why: str) -> None:
    aside = states.set_aside(why)
    history = folder / "history.jsonl"
    if history.exists():
        history.rename(aside / history.name)
