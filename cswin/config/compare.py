"""The differences between two configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cswin.config.resolve import load_settings
from cswin.report.tables import text_table

ABSENT = "-"  # for a key that only the other file has


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one flat mapping, with keys joined by dots."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


def differences_table(first: Path, second: Path) -> str:
    """A line for each key whose value differs, with both values as JSON. Missing keys have their defaults.

    Raises:
        UserError: if one of the two is not a valid configuration.
    """
    columns = [flat(load_settings(path).model_dump(mode="json")) for path in (first, second)]
    rows = []
    for key in dict.fromkeys([*columns[0], *columns[1]]):
        if columns[0].get(key) != columns[1].get(key):
            rows.append([key, *(json.dumps(c[key], ensure_ascii=False) if key in c else ABSENT for c in columns)])
    if not rows:
        return f"{first} and {second} say the same\n"
    return text_table(["key", str(first), str(second)], rows, "plain") + "\n"
