"""Decide whether a run reproduces the published figures: reproduced, not reproduced, or undecided and how many more seeds would decide.

Several runs that differ only in the seed are judged by their mean. The rule was fixed in advance: docs/results.md.
"""

from __future__ import annotations

from pathlib import Path

from cswin.layout import RESULTS, RunLayout


def configure(parser):
    parser.add_argument("runs", nargs="+", metavar="RUN", help="name or folder of a run, all its stages evaluated")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the runs (default: %(default)s)"
    )


def run(args):
    from cswin.config.resolve import load_expectations
    from cswin.report.files import find_runs
    from cswin.report.run import load_run
    from cswin.report.verdict import WHOLE_BATCHES, verdict_of

    folders = find_runs(args.results, args.runs)
    expected = load_expectations(RunLayout(folders[0]).expectations)
    runs = [load_run(folder, list(expected.stages)) for folder in folders]
    _require_seeds_of_one_run(folders, runs)
    for results in zip(*runs, strict=True):
        name = results[0].name
        _show(name, results, "reported", expected.stages[name], verdict_of(results, expected.stages[name], WHOLE_BATCHES))
    _show(name, results, "published", expected.paper_top1, verdict_of(results, expected.paper_top1))


def _show(name, results, which, figure, verdict) -> None:
    from cswin.report.statistics import wilson
    from cswin.report.verdict import verdict_text

    if figure is None:
        print(f"{name}: there is no {which} figure")
        return
    for result in results:
        found = result.evaluation[result.config.evaluation.select_by]
        low, high = wilson(found["right1"], found["n"])
        interval = f"95 % interval {low:.2f} to {high:.2f} from {found['n']:,} images"
        print(
            f"{name}, seed {result.config.seed}: top-1 {found['top1']:.2f} % ({result.config.evaluation.select_by}), {interval}"
        )
    text = verdict_text(verdict) if verdict else "no verdict, because these are not ImageNet's 50,000 validation images"
    print(f"{name}, {which} {figure:.2f} %: {text}")


def _require_seeds_of_one_run(folders, runs) -> None:
    from cswin.errors import UserError

    seeds = [stages[0].config.seed for stages in runs]
    for folder, stages in zip(folders, runs, strict=True):
        for stage, first in zip(stages, runs[0], strict=True):
            if stage.evaluation is None:
                raise UserError(f"{stage.files.folder}: the stage is not trained and evaluated yet; `snakemake` does both")
            if stage.config.model_copy(update={"seed": 0, "run": ""}) != first.config.model_copy(update={"seed": 0, "run": ""}):
                raise UserError(
                    f"{folder}: {stage.name} has another configuration than in {folders[0]}; give runs that differ only in the "
                    "seed (`cswin config --diff`)"
                )
    if len(set(seeds)) < len(seeds):
        raise UserError(f"runs with the seeds {', '.join(map(str, seeds))}: give runs with different seeds")
