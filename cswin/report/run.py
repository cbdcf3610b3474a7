"""A run's files, read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cswin.config.resolve import StageConfig, load_stage
from cswin.errors import UserError
from cswin.train.attempts import ATTEMPTS
from cswin.train.history import HISTORY, read_history


@dataclass(frozen=True)
class StageResult:
    """What a stage left behind; `record` and `evaluation` are None until it has ended.

    Attributes:
        folder: results/<run>/<stage>.
        config_file: the resolved configuration, `config`.
    """

    name: str
    folder: Path
    config_file: Path
    config: StageConfig
    history: list[dict[str, Any]]
    attempts: list[dict[str, Any]]
    record: dict[str, Any] | None
    evaluation: dict[str, Any] | None

    def steps(self) -> list[dict[str, Any]]:
        """Rows of optimizer steps."""
        return [row for row in self.history if row["kind"] == "step"]

    def epochs(self) -> list[dict[str, Any]]:
        """Rows of validated epochs."""
        return [row for row in self.history if row["kind"] == "epoch"]


def load_run(folder: Path, stages: list[str]) -> list[StageResult]:
    """The stages of results/<run>, in their order.

    Raises:
        UserError: if a stage has no resolved configuration there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; `snakemake` makes it")
    return [_load_stage(folder, name) for name in stages]


def _load_stage(folder: Path, name: str) -> StageResult:
    stage, config = folder / name, folder / "config" / f"{name}.yaml"
    history, attempts = stage / HISTORY, stage / ATTEMPTS
    return StageResult(
        name,
        stage,
        config,
        load_stage(config),
        read_history(history) if history.exists() else [],
        read_history(attempts) if attempts.exists() else [],
        _load_json(stage / "record.json"),
        _load_json(stage / "evaluation.json"),
    )


def _load_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
