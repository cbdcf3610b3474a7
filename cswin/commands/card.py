"""Write the run card: what was trained, on what, and how; the result, how to use it, and what was not run."""

from __future__ import annotations

from pathlib import Path


def configure(parser):
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="results/<run>; all stages must be evaluated")
    parser.add_argument("--settings", type=Path, required=True, help="the run's expectations.yaml")
    parser.add_argument("--runtime", type=Path, required=True, help="the run's runtime.yaml")
    parser.add_argument("--dataset", type=Path, required=True, help="dataset.json with which the stages were trained")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write")


def run(args):
    from cswin.atomic import atomic_path
    from cswin.config.resolve import load_expectations, load_runtime
    from cswin.data.store.dataset import Dataset
    from cswin.errors import UserError
    from cswin.report.card import Run, card
    from cswin.report.run import load_run

    expected = load_expectations(args.settings)
    stages = load_run(args.folder, list(expected.stages))
    for stage in stages:
        if stage.record is None or stage.evaluation is None:
            raise UserError(
                f"{args.folder / stage.name}: the stage is not trained and evaluated yet; `cswin status` shows how far it is"
            )
    dataset = Dataset.load(args.dataset, check_files=False)
    text = card(Run(args.folder, expected, stages, load_runtime(args.runtime), dataset))
    with atomic_path(args.output) as temporary:
        temporary.write_text(text, encoding="utf-8")
