"""The columns of the results table: name, type, meaning. The table, its JSON and results/README.md use these definitions."""

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
        kind: type of its values; a number has at most four decimals, a p-value four significant digits.
        meaning: definition, unit, and when the value is empty; Markdown.
    """

    name: str
    kind: Kind
    meaning: str


def _accuracy(which: str, weights: str) -> tuple[Column, ...]:
    return (
        Column(f"right1_{which}", "integer", f"images whose most probable class is correct, {weights}"),
        Column(f"right5_{which}", "integer", "images whose correct class is among the five most probable ones"),
        Column(f"top1_{which}", "number", f"100 right1_{which} / n, per cent"),
        Column(f"top1_{which}_low", "number", f"lower end of the 95 % Wilson interval of top1_{which}"),
        Column(f"top1_{which}_high", "number", "its upper end"),
        Column(f"top5_{which}", "number", f"100 right5_{which} / n, per cent"),
        Column(f"top5_{which}_low", "number", f"lower end of the 95 % Wilson interval of top5_{which}"),
        Column(f"top5_{which}_high", "number", "its upper end"),
        Column(
            f"top1_{which}_whole_batches",
            "number",
            "top-1 in the report's counting, per cent: whole batches of 128 only, without the last, partial batch of the "
            "validation set (in storage order); 49,920 of ImageNet's 50,000 images. Empty below 128 images",
        ),
    )


COLUMNS: tuple[Column, ...] = (
    Column("run", "text", "name of the run"),
    Column("arch", "text", "architecture"),
    Column("stage", "text", "name of the stage"),
    Column("start_epoch", "integer", "first epoch of the stage on the whole schedule, from 0"),
    Column("epochs", "integer", "end of the stage on the whole schedule, exclusive, as in the configuration"),
    Column("best_epoch", "integer", "epoch whose weights are the stage's checkpoint, on the whole schedule, from 0"),
    Column(
        "select_on",
        "text",
        "images that chose this epoch. `val`: the validation set, which is also reported (an optimistic choice); `minival`: a "
        "part of the training set that was not trained on; `none`: the last epoch was taken",
    ),
    Column(
        "select_by", "text", "weights that chose this epoch, `raw` or `ema`; the differences and McNemar's test refer to them"
    ),
    Column("n", "integer", "images evaluated, each exactly once"),
    *_accuracy("raw", "with the raw weights"),
    *_accuracy("ema", "with the moving average of the weights (EMA)"),
    Column("reported_top1", "number", "top-1 of the stage in the report, per cent, in its counting; empty: none"),
    Column("paper_top1", "number", "published or expected top-1 of the configuration, per cent; empty: none"),
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
    Column("verdict_paper", "text", "the same of paper_top1; in the last stage only"),
    Column(
        "mcnemar_lost",
        "integer",
        "images that were correct in the previous stage and are wrong in this one; empty in the first stage",
    ),
    Column("mcnemar_gained", "integer", "images that were wrong in the previous stage and are correct in this one"),
    Column(
        "mcnemar_p",
        "number",
        "two-sided p-value of McNemar's test (exact, binomial) from these two counts; hypothesis: both stages are equally good",
    ),
    Column(
        "images_per_s", "number", "images per second over all devices in the optimizer steps, with the time of waiting for data"
    ),
    Column(
        "train_hours",
        "number",
        "wall-clock hours of all attempts: start, compilation, steps (also repeated ones), validation, saving",
    ),
    Column("data_wait_hours", "number", "hours in which steps waited for images"),
    Column("between_hours", "number", "total hours between the end of an attempt and the start of the next one"),
    Column("attempts", "integer", "number of starts until the stage was complete"),
    Column("resumes", "integer", "number of attempts that resumed from a saved state"),
    Column(
        "attempts_unended",
        "integer",
        "attempts without a recorded end; train_hours includes them only up to their last logged step",
    ),
    Column("devices", "integer", "devices of the last attempt; attempts.jsonl has those of each attempt"),
    Column("checkpoint_sha256", "text", "SHA-256 of <stage>/checkpoint.safetensors"),
    Column("config_sha256", "text", "SHA-256 of config/<stage>.yaml"),
    Column(
        "manifest_sha256", "text", "hash of the data, `manifest_hash` in dataset.json: files, labels and order of all images"
    ),
    Column(
        "git_commit",
        "text",
        "commit of the code; with `-dirty` if files differed from it; `unknown` for an installed package; several if attempts differ",
    ),
)


def reference_text() -> str:
    """The columns as a Markdown table, for results/README.md."""
    rows = [f"| `{column.name}` | {column.kind} | {column.meaning} |" for column in COLUMNS]
    return "\n".join(["| column | type | meaning |", "|---|---|---|", *rows]) + "\n"
