"""Write HTML pages about a run from its files."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    pages = parser.add_subparsers(dest="page", required=True, metavar="PAGE")
    table = _page(pages, "table", _table, "top-1, curves and the complete table")
    table.add_argument("table", type=Path, metavar="CSV", help="final_acc.csv")
    table.add_argument("--curves", type=Path, required=True, metavar="PNG", help="curves.png, to be shown in the page")

    configuration = _page(pages, "configuration", _configuration, "resolved configuration of all stages")
    provenance = _page(pages, "provenance", _provenance, "every attempt of every stage")
    for page in (configuration, provenance):
        page.add_argument("folder", type=Path, metavar="FOLDER", help="results/<run>")
        page.add_argument("--settings", type=Path, required=True, help="the run's stages.yaml or expectations.yaml")
    configuration.add_argument("--runtime", type=Path, required=True, help="the run's runtime.yaml")

    data = _page(pages, "data", _data, "number of images of a dataset by split and class")
    data.add_argument("summary", type=Path, metavar="MANIFEST", help="manifest.json")
    data.add_argument("--dataset", type=Path, required=True, metavar="FILE", help="dataset.json")


def _page(pages, name: str, function, summary: str) -> argparse.ArgumentParser:
    page = pages.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    page.set_defaults(function=function)
    page.add_argument("--output", type=Path, required=True, metavar="FILE", help="HTML file to write")
    return page


def run(args: argparse.Namespace) -> None:
    from cswin.atomic import atomic_path

    text = args.function(args)
    with atomic_path(args.output) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _table(args) -> str:
    import pandas as pd

    from cswin.errors import UserError
    from cswin.report.pages import table_page

    try:
        table = pd.read_csv(args.table, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{args.table}: cannot be read ({error}); `cswin table` writes it") from None
    if table.empty or "run" not in table:
        raise UserError(f"{args.table}: is no table of a run; `cswin table` writes it")
    try:
        curves = args.curves.read_bytes()
    except OSError as error:
        raise UserError(f"{args.curves}: cannot be read ({error.strerror}); `cswin draw curves` draws it") from None
    return table_page(table.run.iloc[0], table, curves)


def _configuration(args) -> str:
    from cswin.config.resolve import load_runtime
    from cswin.report.pages import configuration_page

    run, stages = _stages(args)
    return configuration_page(run, stages, load_runtime(args.runtime))


def _provenance(args) -> str:
    from cswin.report.pages import provenance_page

    return provenance_page(*_stages(args))


def _stages(args):
    from cswin.config.resolve import load_expectations
    from cswin.report.run import load_run

    expected = load_expectations(args.settings)
    return expected.run, load_run(args.folder, list(expected.stages))


def _data(args) -> str:
    import json

    from cswin.data.store.dataset import Dataset
    from cswin.errors import UserError
    from cswin.report.pages import data_page

    try:
        summary = json.loads(args.summary.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{args.summary}: cannot be read ({error}); `cswin data manifest` writes it") from None
    if not isinstance(summary, dict) or not {"splits", "class_names"} <= set(summary):
        raise UserError(f"{args.summary}: is no manifest; `cswin data manifest` writes it")
    dataset = Dataset.load(args.dataset, check_files=False)
    return data_page(summary, {split: len(shards) for split, shards in dataset.splits.items()})
