"""The files of a run as objects."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from cswin.config.resolve import StageConfig, load_stage
from cswin.errors import UserError
from cswin.layout import RunLayout, StageLayout
from cswin.report.files import load_evaluation, load_record
from cswin.run.history import STEP_COLUMNS, read_columns, read_history


@dataclass(frozen=True)
class StageHistory:
    """The logged training.

    Attributes:
        steps: one row per optimizer step: step, loss, lr; seconds, images_per_s and wait at steps where the device was read. NaN:
            no value.
        epochs: rows of validated epochs.
        start: what the stage started from; empty before its start.
    """

    steps: pd.DataFrame
    epochs: list[dict[str, Any]]
    start: dict[str, Any]


@dataclass(frozen=True)
class StageResult:
    """The files of a stage; `record` and `evaluation` are None until they exist.

    Attributes:
        files: in results/<run>/<stage>.
        config_file: the resolved configuration, `config`.
    """

    name: str
    files: StageLayout
    config_file: Path
    config: StageConfig
    attempts: list[dict[str, Any]]
    record: dict[str, Any] | None
    evaluation: dict[str, Any] | None

    @cached_property
    def history(self) -> StageHistory:
        """The history, read at the first access: that of a long stage has 120 MB, and most pages do not need it."""
        path = self.files.history
        columns, others = read_columns(path) if path.exists() else (dict.fromkeys(STEP_COLUMNS, ()), [])
        epochs = [row for row in others if row["kind"] == "epoch"]
        start = next((row for row in others if row["kind"] == "start"), {})
        return StageHistory(pd.DataFrame(columns).astype(float).astype({"step": int}), epochs, start)


def load_run(folder: Path, stages: list[str]) -> list[StageResult]:
    """The stages of results/<run>, in their order.

    Raises:
        UserError: if a stage has no resolved configuration there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; `snakemake` makes it")
    return [_load_stage(RunLayout(folder), name) for name in stages]


def _load_stage(run: RunLayout, name: str) -> StageResult:
    stage, config = run.stage(name), run.config(name)
    return StageResult(
        name,
        stage,
        config,
        load_stage(config),
        read_history(stage.attempts) if stage.attempts.exists() else [],
        load_record(stage),
        load_evaluation(stage),
    )
