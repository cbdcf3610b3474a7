"""Whether runs reproduce a published accuracy; the rule is `statistics.reproduction`, its reasons are in docs/results.md."""

from __future__ import annotations

from collections.abc import Sequence

from cswin.report.run import StageResult
from cswin.report.statistics import SEED_SPREAD, Verdict, reproduction

IMAGENET = (1_281_167, 50_000, 1000)  # ImageNet-1K: images for training and validation, classes
WHOLE_BATCHES = "top1_whole_batches"  # the report's counting


def verdict_of(results: Sequence[StageResult], published: float | None, counting: str = "top1") -> Verdict | None:
    """A verdict on one stage.

    Args:
        results: results of the stage in runs that differ only in the seed, all evaluated.
        published: per cent.
        counting: the key of the figure in evaluation.json.

    Returns:
        The verdict; None without a published figure, or if the images are not ImageNet's validation set.
    """
    figures = [result.evaluation[result.config.evaluation.select_by] for result in results]
    images = {(found["n"], result.config.num_classes) for found, result in zip(figures, results, strict=True)}
    if published is None or images != {IMAGENET[1:]}:
        return None
    return reproduction([found[counting] for found in figures], published)


def verdict_text(verdict: Verdict) -> str:
    """The verdict in a sentence."""
    interval = f"90 % interval {verdict.low:+.2f} to {verdict.high:+.2f} points, for a spread of {SEED_SPREAD:g} between seeds"
    text = f"{verdict.answer} ({verdict.difference:+.2f}; {interval})"
    if verdict.answer != "undecided":
        return text
    if verdict.seeds_missing is None:
        return f"{text}; no number of seeds would decide, because the published figure is a single run"
    return f"{text}; {verdict.seeds_missing} more with the same mean would decide"
