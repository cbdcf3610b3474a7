"""Write the results table of a run."""

from __future__ import annotations

from pathlib import Path


def configure(parser):
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="results/<run>")
    parser.add_argument("--settings", type=Path, required=True, help="the run's summary of stages and expectations")
    parser.add_argument("--output", type=Path, required=True, help="CSV to write")


def run(args):
    from cswin.atomic import atomic_path
    from cswin.config.resolve import load_expectations
    from cswin.report.run import load_run
    from cswin.report.table import results_table

    expected = load_expectations(args.settings)
    stages = load_run(args.folder, list(expected.stages))
    table = results_table(expected.run, stages, expected.stages, expected.paper_top1)
    with atomic_path(args.output) as temporary:
        table.to_csv(temporary, index=False)
    print(table.T.to_string(header=False))
