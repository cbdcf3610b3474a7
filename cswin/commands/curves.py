"""Draw the curves of a run: loss, learning rate, top-1 over all stages."""

from __future__ import annotations

from pathlib import Path


def configure(parser):
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="results/<run>")
    parser.add_argument("--settings", type=Path, required=True, help="the run's summary of stages and expectations")
    parser.add_argument("--output", type=Path, required=True, help="PNG to write")


def run(args):
    from cswin.config.resolve import load_expectations
    from cswin.errors import UserError
    from cswin.report.curves import draw_curves
    from cswin.report.run import load_run

    expected = load_expectations(args.settings)
    stages = [stage for stage in load_run(args.folder, list(expected.stages)) if stage.epochs()]
    if not stages:
        raise UserError(f"{args.folder}: no stage has validated an epoch yet; there is nothing to draw")
    title = f"{expected.run}: {stages[0].config.model.arch}"
    draw_curves(stages, args.output, title=title, reported=expected.stages, paper=expected.paper_top1)
