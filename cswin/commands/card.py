"""Write the card of a run: what was trained on what, how, the result, how to use it, and what was not run."""

from __future__ import annotations

from pathlib import Path


def configure(parser):
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="results/<run>")
    parser.add_argument("--settings", type=Path, required=True, help="the run's summary of stages and expectations")
    parser.add_argument("--dataset", type=Path, required=True, help="dataset.json that the stages were trained on")
    parser.add_argument("--output", type=Path, required=True, help="Markdown to write")


def run(args):
    from cswin.atomic import atomic_path
    from cswin.config.resolve import load_expectations, load_runtime
    from cswin.data.dataset import Dataset
    from cswin.report.card import card
    from cswin.report.run import load_run

    expected = load_expectations(args.settings)
    stages = load_run(args.folder, list(expected.stages))
    text = card(args.folder, expected, stages, args.dataset, Dataset.load(args.dataset))
    with atomic_path(args.output) as temporary:
        temporary.write_text(text, encoding="utf-8")
