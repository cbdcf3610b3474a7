"""The start of a stage: fresh weights, a pretrained checkpoint, or the previous stage."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cswin.checkpoint import HEAD, fitting_weights, load_checkpoint
from cswin.class_names import match_classes
from cswin.config.resolve import StageConfig
from cswin.errors import UserError
from cswin.layout import STATE
from cswin.run.states import StateFolder
from cswin.train.state import Start

STAGE_COUNTERS = ("schedule_step", "good_steps", "bad_steps")  # belong to one stage, never carried over


def prepare_start(config: StageConfig, previous: Path | None, class_names: Sequence[str]) -> Start:
    """The start of a stage.

    Args:
        config: the stage.
        previous: checkpoint of the previous stage (for carry: all with the folder state/ beside it), or the pretrained one.
        class_names: classes of the data. The head of a pretrained checkpoint is used only if it has the same classes.

    Raises:
        UserError: if the checkpoint has another architecture, or if the state that carry: all needs is missing.
    """
    if previous is None:
        return Start()
    if config.previous and config.carry == "all":
        return _everything(config, previous)
    checkpoint = load_checkpoint(previous)
    which, weights = checkpoint.select(config.carry_weights if config.previous else None)
    free = ("image_size", "split_size") if config.previous else ("image_size", "split_size", "num_classes")
    taken = fitting_weights(weights, checkpoint.record.architecture, config.architecture, free, previous)
    record = {"carry": "weights", "which": which, "from": str(previous), "anew": ["moments", "EMA", "loss scale"]}
    if not config.previous:
        taken, record["head"] = _with_fitting_head(taken, checkpoint.record.class_names, class_names)
    return Start(taken, record=record | {"new": [name for name in HEAD if name not in taken]})


def _with_fitting_head(
    weights: dict[str, np.ndarray], known: Sequence[str], wanted: Sequence[str]
) -> tuple[dict[str, np.ndarray], str]:
    """The weights, and what was done with the head: its rows in the order of the data's classes, or removed if the classes differ."""
    outputs = {}
    with contextlib.suppress(UserError):
        outputs, _ = match_classes(wanted, known, "data")
    if not len(outputs) == len(known) == len(wanted):
        body = {name: value for name, value in weights.items() if name not in HEAD}
        return body, (
            f"replaced by a new one for other classes: the checkpoint has {len(known)} ({_shortened(known)}), the data "
            f"{len(wanted)} ({_shortened(wanted)})"
        )
    rows = [outputs[name] for name in wanted]
    if rows == list(range(len(known))):
        return weights, "kept, the classes are the same"
    return weights | {name: weights[name][rows] for name in HEAD}, "kept, its rows reordered to the data's classes"


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _everything(config: StageConfig, previous: Path) -> Start:
    """Everything from the last state of the previous stage."""
    folder = previous.parent / STATE
    state = StateFolder(folder, keep=2, say=print).load()
    if state is None:
        raise UserError(
            f"{folder}: no training state; stages.{config.stage}.carry: all needs the state that {config.previous} ended "
            f"with. Train it again (snakemake --forcerun train_{config.previous}) or use carry: weights"
        )
    carried = {k: v for k, v in state.arrays.items() if not k.startswith("best.") and k not in STAGE_COUNTERS}
    return Start(
        everything=carried, record={"carry": "all", "from": str(folder), "step": state.step, "anew": list(STAGE_COUNTERS)}
    )
