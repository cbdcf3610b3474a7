"""The folders of runs, and their small files. Cheap to import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from cswin.errors import UserError
from cswin.layout import RunLayout, StageLayout


def find_runs(results: Path, names: list[str]) -> list[Path]:
    """Folders of the given runs (names in `results`, or paths); without names, of all runs in `results`.

    Raises:
        UserError: if there is no run, or a given one does not exist.
    """
    results = Path(results)
    if not names:
        found = sorted(folder.parent for folder in results.glob("*/config") if folder.is_dir())
        if not found:
            raise UserError(f"{results}: contains no run; `snakemake` makes one, --results names another folder")
        return found
    folders = []
    for name in names:
        folder = next((f for f in (results / name, Path(name)) if RunLayout(f).configs.is_dir()), None)
        if folder is None:
            known = ", ".join(sorted(f.parent.name for f in results.glob("*/config"))) or "none"
            raise UserError(f"{name}: no such run in {results}; there: {known}")
        folders.append(folder)
    return folders


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; empty if the file is missing or is being written."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def load_record(stage: StageLayout) -> dict[str, Any] | None:
    """A stage's record.json, as `load_json`. Raises UserError if it is whole but has another content."""
    return _load_facts(stage.record, ("sha256", "best_epoch"), "remove it and give the same snakemake command again")


def load_evaluation(stage: StageLayout) -> dict[str, Any] | None:
    """The same of evaluation.json."""
    return _load_facts(
        stage.evaluation, ("checkpoint", "raw"), f"make it again: snakemake {stage.evaluation} --forcerun evaluate"
    )


def _load_facts(path: Path, keys: tuple[str, ...], remedy: str) -> dict[str, Any] | None:
    facts = load_json(path)
    if facts is not None and not (isinstance(facts, dict) and set(keys) <= set(facts)):
        raise UserError(f"{path}: is damaged, it lacks {' or '.join(keys)}; {remedy}")
    return facts


def load_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if the file is missing or is being written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
