"""Values from the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


def typed_overrides(values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`values` in which overridden texts are parsed as in a YAML file.

    Args:
        values: a configuration into which the overrides have been merged.
        overrides: the values from the command line, in which Snakemake leaves every value inside `{…}` as text.
    """
    result = dict(values)
    for key, override in overrides.items():
        if isinstance(override, Mapping) and isinstance(values.get(key), Mapping):
            result[key] = typed_overrides(values[key], override)
        else:
            result[key] = _typed(override)
    return result


def _typed(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError:
            return value
    if isinstance(value, Mapping):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_typed(item) for item in value]
    return value
