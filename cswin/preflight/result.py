"""The result of a check."""

from __future__ import annotations

from dataclasses import dataclass

PASSED, NOTED, WARNING, FAILED, UNCHECKED = "passed", "noted", "warning", "failed", "not checked"
STOPPING = "abcg"  # a failure of one of these stops the run


@dataclass(frozen=True)
class Check:
    """One line of the page.

    Attributes:
        item: letter of the check, see docs/ascend.md.
        what: what was measured, with its unit.
        value: the result; None if it was not measured.
        bound: what the value is compared with; None if there is none.
        verdict: passed, noted (no bound), warning, failed (training must not begin) or not checked.
        advice: what to do, or why it was not checked; empty if nothing is to be done.
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
