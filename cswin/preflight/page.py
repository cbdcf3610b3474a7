"""The files of a preflight: preflight.json, and preflight.md for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cswin.atomic import atomic_path
from cswin.distributed.backend import backend_text
from cswin.preflight.result import FAILED, PASSED, WARNING, Check
from cswin.report.tables import text_table

ITEMS = {
    "a": "the network computes what the authors' code computes",
    "b": "an overflow skips the step on all ranks",
    "c": "exchanges between ranks are exact",
    "d": "equal bits in two runs",
    "e": "memory",
    "f": "speed",
    "g": "resumption",
}


def verdict(checks: list[Check]) -> str:
    """The worst verdict: failed, warning or passed."""
    found = {check.verdict for check in checks}
    return next((each for each in (FAILED, WARNING) if each in found), PASSED)


def write(output: Path, facts: Mapping[str, Any], checks: list[Check]) -> None:
    """Write preflight.json to `output` and preflight.md beside it.

    Args:
        output: path of the JSON file.
        facts: run, stage, time, seconds, devices, backend (`Backend.record`), versions.
        checks: the results.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    content = {"verdict": verdict(checks), **facts, "checks": [vars(check) for check in checks]}
    with atomic_path(output) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    with atomic_path(output.with_suffix(".md")) as temporary:
        temporary.write_text(page(facts, checks), encoding="utf-8")


def page(facts: Mapping[str, Any], checks: list[Check]) -> str:
    """The page as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    rows = [(c.item, c.what, _text(c.value), _text(c.bound), c.verdict) for c in checks]
    lines = [
        f"# Preflight of {facts['run']}: {verdict(checks)}", "",
        f"Stage {facts['stage']}, {facts['devices']} device(s), {facts['precision']}. {facts['time']}, {facts['seconds']} s.", "",
        f"Device: {backend_text(facts['backend'])}.", "", f"Versions: {versions}.", "",
        text_table(("", "check", "value", "bound", "verdict"), rows), "",
    ]  # fmt: skip
    for advice in dict.fromkeys(check.advice for check in checks if check.advice):
        about = dict.fromkeys(check.item for check in checks if check.advice == advice)
        lines += [f"- **{', '.join(about)}** ({'; '.join(ITEMS[item] for item in about)}): {advice}."]
    lines += [
        "", "Failed a, b, c or g: training does not begin. How each bound is derived: docs/ascend.md. You can send this page as it is.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _text(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or "–"
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"
