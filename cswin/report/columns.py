"""The columns of the results table: name, type, meaning, each once. The table, its JSON and results/README.md follow from here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "integer", "number"]
DTYPES = {"text": "string", "integer": "Int64", "number": "Float64"}  # pandas' types that can be empty


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: as in the CSV and the JSON.
        kind: of its values; a number has at most four decimals, a p-value four significant digits.
        meaning: unit and definition, Markdown; when it is empty.
    """

    name: str
    kind: Kind
    meaning: str


def _accuracy(which: str, weights: str) -> tuple[Column, ...]:
    return (
        Column(f"right1_{which}", "integer", f"images whose most probable class is the right one, {weights}"),
        Column(f"right5_{which}", "integer", "images whose right class is among the five most probable ones"),
        Column(f"top1_{which}", "number", f"100 right1_{which} / n, per cent"),
        Column(f"top1_{which}_low", "number", f"lower end of the 95 % Wilson interval of top1_{which}"),
        Column(f"top1_{which}_high", "number", "its upper end"),
        Column(f"top5_{which}", "number", f"100 right5_{which} / n, per cent"),
        Column(f"top5_{which}_low", "number", f"lower end of the 95 % Wilson interval of top5_{which}"),
        Column(f"top5_{which}_high", "number", "its upper end"),
        Column(
            f"top1_{which}_whole_batches",
            "number",
            "top-1 by the report's counting: whole batches of 128 only, what is left at the end of the validation set (in the "
            "order in which it is stored) is dropped; 49,920 of ImageNet's 50,000. Empty below 128 images",
        ),
    )


COLUMNS: tuple[Column, ...] = (
    Column("run", "text", "name of the run"),
    Column("arch", "text", "architecture"),
    Column("stage", "text", "name of the stage"),
    Column("start_epoch", "integer", "first epoch of the stage on the whole schedule, from 0"),
    Column("epochs", "integer", "end of the stage on the whole schedule, exclusive, as in the configuration"),
    Column("best_epoch", "integer", "the epoch whose weights are the stage's checkpoint, on the whole schedule, from 0"),
    Column(
        "select_on",
        "text",
        "images that chose this epoch: `val`, the set that is also reported (an optimistic choice); `minival`, a part of the "
        "training set that was not trained on; `none`, the last epoch was taken",
    ),
    Column(
        "select_by", "text", "weights that chose it, `raw` or `ema`; the differences and the test below are of these weights"
    ),
    Column("n", "integer", "images evaluated, each exactly once"),
    *_accuracy("raw", "of the weights themselves"),
    *_accuracy("ema", "of the weights' moving average"),
    Column(
        "reported_top1", "number", "top-1 that the report gives for the stage, per cent, by its counting; empty: none given"
    ),
    Column("paper_top1", "number", "published or expected top-1 of the configuration, per cent; empty: none given"),
    Column(
        "minus_reported",
        "number",
        "top1_`select_by`_whole_batches - reported_top1, percentage points: the same counting on both sides",
    ),
    Column("minus_paper", "number", "top1_`select_by` - paper_top1, percentage points"),
    Column(
        "verdict_reported",
        "text",
        "`reproduced`, `not reproduced` or `undecided` of reported_top1, by the rule in docs/results.md; empty without such a figure, "
        "and on other images than ImageNet's 50,000",
    ),
    Column("verdict_paper", "text", "the same of paper_top1; in the last stage alone"),
    Column("mcnemar_lost", "integer", "images that the stage before has right and this one wrong; empty in the first stage"),
    Column("mcnemar_gained", "integer", "images that the stage before has wrong and this one right"),
    Column(
        "mcnemar_p",
        "number",
        "two-sided p-value of McNemar's test (exact, binomial) that neither stage is better, from these two counts",
    ),
    Column("images_per_s", "number", "images per second over all devices in the optimizer steps, waiting for data included"),
    Column(
        "train_hours",
        "number",
        "hours of all attempts together, by the clock: start, compilation, steps (repeated ones too), validation, saving",
    ),
    Column("data_wait_hours", "number", "hours of it in which steps waited for images"),
    Column("between_hours", "number", "hours from the end of an attempt to the start of the next, together"),
    Column("attempts", "integer", "how often the stage was started until it was complete"),
    Column("resumes", "integer", "how many attempts went on from a saved state"),
    Column(
        "attempts_unended",
        "integer",
        "attempts of which no end is recorded: train_hours has them up to their last logged step only and is too low by the rest",
    ),
    Column("devices", "integer", "devices of the last attempt (each attempt's: attempts.jsonl)"),
    Column("checkpoint_sha256", "text", "of <stage>/checkpoint.safetensors"),
    Column("config_sha256", "text", "of config/<stage>.yaml"),
    Column(
        "manifest_sha256", "text", "hash of the data, `manifest_hash` in dataset.json: files, labels and order of all images"
    ),
    Column(
        "git_commit",
        "text",
        "commit of the code, `-dirty` where files differed from it, `unknown` for an installed package; several where attempts differ",
    ),
)


def reference_text() -> str:
    """The columns as a Markdown table, for results/README.md."""
    rows = [f"| `{column.name}` | {column.kind} | {column.meaning} |" for column in COLUMNS]
    return "\n".join(["| column | type | meaning |", "|---|---|---|", *rows]) + "\n"
