"""Print the results table of a run, or write it to files."""

from __future__ import annotations

import argparse
from pathlib import Path


class _Columns(argparse.Action):
    """Prints the meaning of the columns and exits, as --version does."""

    def __init__(self, option_strings, dest, **options):
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser, namespace, values, option_string=None):
        from cswin.report.columns import reference_text

        print(reference_text(), end="")
        parser.exit()


def configure(parser):
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="results/<run>")
    parser.add_argument("--settings", type=Path, required=True, help="the run's expectations.yaml")
    parser.add_argument(
        "--output", type=Path, nargs="+", default=[], metavar="FILE", help="write .csv (all columns), .json, .md (for readers)"
    )
    parser.add_argument("--columns", action=_Columns, help="print what each column means (Markdown)")


def run(args):
    from cswin.atomic import atomic_path
    from cswin.config.resolve import load_expectations
    from cswin.errors import UserError
    from cswin.report.markdown import markdown_table
    from cswin.report.run import load_run
    from cswin.report.table import results_table, table_json

    expected = load_expectations(args.settings)
    texts = {
        ".csv": lambda table: table.to_csv(index=False),
        ".json": lambda table: table_json(expected.run, table),
        ".md": lambda table: markdown_table(table, f"{expected.run}: {table['arch'][0]}"),
    }
    for path in args.output:
        if path.suffix not in texts:
            raise UserError(f"--output {path}: a table is written as {', '.join(texts)}")
    stages = load_run(args.folder, list(expected.stages))
    table = results_table(expected.run, stages, expected.stages, expected.paper_top1)
    for path in args.output:
        with atomic_path(path) as temporary:
            temporary.write_text(texts[path.suffix](table), encoding="utf-8")
    print(texts[".md"](table), end="")
