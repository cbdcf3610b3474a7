"""The results of the checks, and their files: preflight.json, and preflight.md for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cswin.atomic import atomic_path
from cswin.distributed.backend import backend_text
from cswin.report.tables import text_table

PASSED, NOTED, WARNING, FAILED, UNCHECKED = "passed", "noted", "warning", "failed", "not checked"
STOPPING = "abcg"  # a failure of one of these stops the run


@dataclass(frozen=True)
class Check:
    """One line of the page.

    Attributes:
        item: letter of the check, see docs/ascend.md.
        what: what was measured, with its unit.
        value, bound: the result, and what it is compared with; None if there is none.
        verdict: passed, noted (no bound), warning, failed (training must not begin) or not checked.
        advice: what to do, or why it was not checked.
    """

    item: str
    what: str
    value: float | str | None
    bound: float | str | None
    verdict: str
    advice: str = ""


def judged(item: str, what: str, value: float | str, bound: float | str, good: bool, advice: str) -> Check:
    """A check that has passed or not; `advice` is what to do if not."""
    verdict = PASSED if good else FAILED if item in STOPPING else WARNING
    return Check(item, what, value, bound, verdict, "" if good else advice)


def unchecked(item: str, what: str, why: str) -> Check:
    """A check that cannot be made here."""
    return Check(item, what, None, None, UNCHECKED, why)


def verdict(checks: list[Check]) -> str:
    """The worst verdict: failed, warning or passed."""
    found = {check.verdict for check in checks}
    return next((each for each in (FAILED, WARNING) if each in found), PASSED)


def write(output: Path, facts: Mapping[str, Any], checks: list[Check]) -> None:
    """Write preflight.json to `output` and preflight.md beside it; `facts` are those of `preflight`."""
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = [{k: str(v) if v != v or v == math.inf else v for k, v in vars(check).items()} for check in checks]  # JSON: no NaN
    content = json.dumps({"verdict": verdict(checks), **facts, "checks": rows}, indent=2) + "\n"
    for path, text in ((output, content), (output.with_suffix(".md"), page(facts, checks))):
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def page(facts: Mapping[str, Any], checks: list[Check]) -> str:
    """The page as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    rows = [(c.item, c.what, _text(c.value), _text(c.bound), c.verdict) for c in checks]
    lines = [
        f"# Preflight of {facts['run']}: {verdict(checks)}", "",
        f"Stage {facts['stage']}, {facts['devices']} device(s), {facts['amp_level']} in {facts['amp_dtype']}. {facts['time']}, {facts['seconds']} s.", "",
        f"Device: {backend_text(facts['backend'])}.", "", f"Versions: {versions}.", "",
        text_table(("", "check", "value", "bound", "verdict"), rows), "",
    ]  # fmt: skip
    for advice in dict.fromkeys(check.advice for check in checks if check.advice):
        about = dict.fromkeys(check.item for check in checks if check.advice == advice)
        lines += [f"- **{', '.join(about)}**: {advice}."]
    lines += [
        "", "Failed a, b, c or g: training does not begin. How each bound is derived: docs/ascend.md. You can send this page as it is.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _text(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or "–"
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"
