"""What a stage begins with: fresh weights, a pretrained checkpoint, or the stage before."""

from __future__ import annotations

from pathlib import Path

from cswin.checkpoint import HEAD, fitting_weights, load_checkpoint
from cswin.config.resolve import StageConfig
from cswin.errors import UserError
from cswin.layout import STATE
from cswin.run.states import StateFolder
from cswin.train.state import Start

STAGE_COUNTERS = ("schedule_step", "good_steps", "bad_steps")  # belong to a stage, never carried


def prepare_start(config: StageConfig, previous: Path | None) -> Start:
    """The start of a stage.

    Args:
        config: the stage.
        previous: checkpoint of the stage before (beside it the folder state/, for carry: all), or the pretrained one.

    Raises:
        UserError: if the checkpoint belongs to another architecture or the state that is to be carried is missing.
    """
    if previous is None:
        return Start()
    if config.previous and config.carry == "all":
        return _everything(config, previous)
    checkpoint = load_checkpoint(previous)
    which = config.carry_weights if config.previous else "ema"
    weights = checkpoint.best_weights() if which == "ema" else checkpoint.weights
    free = ("image_size", "split_size") if config.previous else ("image_size", "split_size", "num_classes")
    taken = fitting_weights(weights, checkpoint.record.architecture, config.architecture, free, previous)
    return Start(
        taken,
        record={
            "carry": "weights",
            "which": which,
            "from": str(previous),
            "new": [name for name in HEAD if name not in taken],
            "anew": ["moments", "EMA", "loss scale"],
        },
    )


def _everything(config: StageConfig, previous: Path) -> Start:
    """All that the stage before ended with, from its last state."""
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
