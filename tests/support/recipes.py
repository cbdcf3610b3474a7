"""Recipes for tests: a shipped configuration with changes of single keys."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from cswin.config.resolve import StageConfig, parse_settings, resolve_stage
from cswin.config.runtime import Runtime
from cswin.config.settings import Optimizer, Schedule

CONFIG = Path(__file__).parents[2] / "config"
DIGITS, REPORT = CONFIG / "config.yaml", CONFIG / "imagenet/report_small_224.yaml"
CARRY = {"carry": "weights", "carry_weights": "raw"}  # required in every stage after the first


def recipe(file: Path = REPORT, **changes: Any) -> dict[str, Any]:
    """The values of a configuration file, with changes.

    Args:
        file: the configuration.
        changes: by top-level key. A section is merged key by key; other stages, and another source of data, replace the file's.
    """
    values = yaml.safe_load(file.read_text())
    for key, change in deepcopy(changes).items():
        if key == "data" and "source" in change:
            values[key] = {"name": values[key]["name"], "classes": values[key]["classes"]}
        merged = isinstance(change, dict) and key != "stages"
        values[key] = {**values.get(key, {}), **change} if merged else change
    return values


def stage(file: Path = REPORT, **changes: Any) -> tuple[StageConfig, Runtime]:
    """The first stage of `recipe`, resolved, and its runtime."""
    settings = parse_settings(recipe(file, **changes))
    return resolve_stage(settings, next(iter(settings.stages))), settings.runtime


def optimizer(**changes: Any) -> Optimizer:
    """The report's optimizer section with changes."""
    return Optimizer(**recipe(optimizer=changes)["optimizer"])


def schedule(**changes: Any) -> Schedule:
    """The report's schedule section with changes."""
    return Schedule(**recipe(schedule=changes)["schedule"])
