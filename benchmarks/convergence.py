"""Trains the digits as the reference trainings did, and decides by a test fixed in advance whether both converge alike.

    make convergence                                                       # 10 seeds, then the table and the picture
    python benchmarks/convergence.py [--seeds 10] [--mutant NAME ...] [--output results/convergence]
    python benchmarks/convergence.py --judge results/convergence/runs.jsonl    # again from the runs, without training

The reference (tests/golden/convergence.jsonl, 40 seeds) is the authors' network in PyTorch with timm's augmentation and PyTorch's
AdamW. `RECIPE` is its recipe, applied to config/config.yaml. Seeds are new in each call.

The test. A run gives 18 numbers: the means of `METRICS` over the epochs of each of `WINDOWS`. For each of them Student's t test compares
the seeds with the reference's. In this order:

    different: a p-value, times 18 (Bonferroni), is below 0.01;
    equal:     each 90 % interval of the difference lies within +-1.75 standard deviations of a reference run, which are two one-sided
               tests of equivalence at 5 % each. All must hold, so this error needs no correction;
    undecided: otherwise. More seeds decide.

Simulated with the reference's means and covariances, 10 seeds of an equal program are called equal in 97 % and different in 0.8 % of
2,000 cases. That the test can say no is tried with `MUTANTS`, each a small fault.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

from cswin.config.resolve import dump, parse_settings, resolve_stage
from cswin.report.pictures.style import EMA, NEUTRAL, picture
from cswin.report.tables import text_table
from cswin.run.history import read_history

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "tests/golden/convergence.jsonl"
DATASET = ROOT / "data/digits/dataset.json"
OURS = "this project"
EPOCHS, VAL = 15, 360
METRICS = {  # of an epoch, by the reference's name
    "train": "training loss", "grad_norm": "gradient norm before clipping", "raw_loss": "validation loss, raw",
    "raw_right": "right of 360, raw", "ema_loss": "validation loss, EMA", "ema_right": "right of 360, EMA",
}  # fmt: skip
WINDOWS = {"early": (1, 5), "middle": (5, 10), "last": (10, 15)}  # epochs from 0; the first one is left out
EQUIVALENCE, SIGNIFICANCE = 1.75, 0.01  # see above
MINUTES = 4.0  # of a run on one core of two, measured

RECIPE: dict[str, Any] = {
    "model": {"drop_path": 0.1},
    "augment": {"scale": [0.5, 1.0], "rand_augment": "rand-m9-mstd0.5-inc1", "erase_prob": 0.25, "mixup_prob": 1.0},
    "stages": {"stage1": {"start_epoch": 0, "epochs": EPOCHS, "schedule": {"cool_length": 1}}},
    "runtime": {"workers": 1, "tensorboard": False},
}
MUTANTS: dict[str, dict[str, Any]] = {
    "no erasing": {"augment": {"erase_prob": 0.0}},
    "EMA decay 0.9": {"optimizer": {"ema_decay": 0.9}},
    "tanh GELU": {"runtime": {"graph_cache": False}},  # and TANH_GELU; a kept graph would be that of the exact one
    "label smoothing 0": {"augment": {"label_smoothing": 0.0}},
    "mixup without cutmix": {"augment": {"cutmix": 0.0}},
    "learning rate x 1.5": {"schedule": {"base_lr": 1.5e-3}},
}
TRAIN = "import sys; from cswin.cli import main; sys.exit(main(sys.argv[1:]))"
TANH_GELU = "from mindspore import nn; from cswin.model import layers; layers.cpu.Gelu = lambda: nn.GELU(approximate=True); "


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with changes, section by section; `stages` is replaced."""
    sections = {key: {**values[key], **change} if key != "stages" else change for key, change in changes.items()}
    return {**values, **sections}


def train(name: str, seed: int, dataset: Path = DATASET) -> dict[str, Any]:
    """Train one seed of this project or of a mutant: a row like those of the reference."""
    values = merged(yaml.safe_load((ROOT / "config/config.yaml").read_text()), RECIPE)
    settings = parse_settings({**merged(values, MUTANTS.get(name, {})), "seed": seed})
    with tempfile.TemporaryDirectory(prefix="cswin-convergence-") as temporary:
        folder = Path(temporary)
        (folder / "stage.yaml").write_text(dump(resolve_stage(settings, "stage1")))
        (folder / "runtime.yaml").write_text(dump(settings.runtime))
        files = {
            "config": folder / "stage.yaml",
            "runtime": folder / "runtime.yaml",
            "dataset": dataset,
            "output": folder / "stage",
        }
        code = (TANH_GELU if name == "tanh GELU" else "") + TRAIN
        done = subprocess.run(
            [sys.executable, "-c", code, "train", *(str(word) for key, file in files.items() for word in (f"--{key}", file))],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "GLOG_v": "3"}, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{name}, seed {seed}: cswin train ended with code {done.returncode}\n{done.stderr[-3000:]}")
        return {"recipe": name, "seed": seed, "epochs": epochs(read_history(folder / "stage/history.jsonl"))}


def epochs(history: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The reference's figures of each epoch from a stage's history."""
    rows = list(history)
    found = []
    for row in rows:
        if row["kind"] == "epoch":
            steps = [step for step in rows if step["kind"] == "step" and step["epoch"] == row["epoch"]]
            means = {
                key: float(np.mean([step[name] for step in steps])) for key, name in (("train", "loss"), ("grad_norm",) * 2)
            }
            sets = {f"{which}_loss": row[which]["loss"] for which in ("raw", "ema")}
            right = {f"{which}_right": round(row[which]["top1"] * VAL / 100) for which in ("raw", "ema")}
            found.append({"epoch": row["epoch"], **means, **sets, **right})
    return found


def read_runs(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Runs by recipe."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in file.read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["recipe"], []).append(row)
    return found


def figures(runs: Sequence[Mapping[str, Any]], windows: Mapping[str, tuple[int, int]] = WINDOWS) -> np.ndarray:
    """(runs, windows x metrics): the means over the epochs of each window."""
    each = np.array([[[epoch[metric] for metric in METRICS] for epoch in run["epochs"]] for run in runs])
    return np.concatenate([each[:, start:end].mean(1) for start, end in windows.values()], 1)


@dataclass(frozen=True)
class Comparison:
    """Runs against the reference; arrays over windows x metrics, in standard deviations of a reference run.

    Attributes:
        difference: of the means.
        low, high: its 90 % interval.
        p: corrected p-value of no difference.
    """

    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray

    @classmethod
    def of(cls, reference: np.ndarray, runs: np.ndarray) -> Comparison:
        spread, found = reference.std(0, ddof=1), stats.ttest_ind(runs, reference)
        interval = found.confidence_interval(0.9)
        corrected = np.minimum(found.pvalue * reference.shape[1], 1.0)
        return cls((runs.mean(0) - reference.mean(0)) / spread, interval.low / spread, interval.high / spread, corrected)

    @property
    def verdict(self) -> str:
        """See the top of this file."""
        if (self.p < SIGNIFICANCE).any():
            return "different"
        equal = (self.low > -EQUIVALENCE).all() and (self.high < EQUIVALENCE).all()
        return "equal" if equal else "undecided"

    @property
    def runs_needed(self) -> int:
        """Seeds of each side with which the largest difference, if it is real, is found in 90 % of cases."""
        z = stats.norm.isf(SIGNIFICANCE / (2 * len(self.p))) + stats.norm.isf(0.1)
        return math.ceil(2 * (z / np.abs(self.difference).max()) ** 2)


def report(reference: Sequence[Mapping], runs: Mapping[str, Sequence[Mapping]]) -> str:
    """The tables, as Markdown."""
    names = [f"{METRICS[metric]}, {window}" for window in WINDOWS for metric in METRICS]
    known, lines, rows = figures(reference), [], []
    for name, each in runs.items():
        found = figures(each)
        compared = Comparison.of(known, found)
        worst = int(np.abs(compared.difference).argmax())
        needed = "" if compared.verdict == "different" else compared.runs_needed
        rows.append((name, len(each), compared.verdict, f"{compared.difference[worst]:+.2f}: {names[worst]}", needed))
        if name == OURS:
            pairs = zip(
                *(((f"{m:.4g} ± {s:.2g}") for m, s in zip(a.mean(0), a.std(0, ddof=1), strict=True)) for a in (known, found)),
                strict=True,
            )
            cells = zip(names, pairs, compared.difference, compared.low, compared.high, compared.p, strict=True)
            table = [(n, *pair, f"{d:+.2f} ({low:+.2f} to {high:+.2f})", f"{p:.2g}") for n, pair, d, low, high, p in cells]
            head = ("mean over runs ± their standard deviation", f"reference, {len(known)} runs", f"{OURS}, {len(each)} runs",
                    "difference (90 %), reference's standard deviations", "p, corrected")  # fmt: skip
            lines = [text_table(head, table), ""]
    head = ("trained", "seeds", "verdict", "largest difference, standard deviations", "seeds that would tell it apart")
    return "\n".join([*lines, text_table(head, rows)])


def draw(reference: Sequence[Mapping], runs: Mapping[str, Sequence[Mapping]], path: Path) -> None:
    """The reference's range (5 to 95 % of its runs) and mean, and this project's runs over it."""
    subtitle = (
        f"violet: {len(reference)} reference runs in PyTorch, 5 to 95 % and mean; blue: {len(runs[OURS])} runs of this project"
    )
    with picture(path, 8.0, "Convergence on the digits", subtitle) as figure:
        for axes, (metric, label) in zip(figure.subplots(3, 2, sharex=True).flat, METRICS.items(), strict=True):
            known, ours = (np.array([[e[metric] for e in run["epochs"]] for run in each]) for each in (reference, runs[OURS]))
            x = np.arange(1, known.shape[1] + 1)
            axes.fill_between(x, *np.quantile(known, (0.05, 0.95), axis=0), color=NEUTRAL, alpha=0.25, linewidth=0)
            axes.plot(x, known.mean(0), color=NEUTRAL)
            axes.plot(x, ours.T, color=EMA, linewidth=0.6, alpha=0.8)
            axes.set(ylabel=label)
            axes.grid(axis="y")
        for axes in figure.axes[-2:]:
            axes.set_xlabel("epoch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="seeds of each (default: %(default)s)")
    parser.add_argument("--mutant", nargs="+", default=[], choices=MUTANTS, help="train these as well")
    parser.add_argument("--output", type=Path, default=ROOT / "results/convergence", metavar="FOLDER")
    parser.add_argument("--judge", type=Path, metavar="FILE", help="runs.jsonl of earlier calls: train nothing")
    args = parser.parse_args()
    reference = read_runs(REFERENCE)["report_order"]
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.judge or args.output / "runs.jsonl"
    if not args.judge:
        todo = [(name, secrets.randbelow(2**31)) for name in (OURS, *args.mutant) for _ in range(args.seeds)]
        cores = len(os.sched_getaffinity(0))
        print(f"{len(todo)} runs, {cores} at a time: about {math.ceil(len(todo) / cores) * MINUTES:.0f} minutes", flush=True)
        with file.open("w") as lines, ThreadPoolExecutor(cores) as pool:
            for row in pool.map(train, *zip(*todo, strict=True)):
                lines.write(json.dumps(row) + "\n")
                lines.flush()
                print(f"{row['recipe']}, seed {row['seed']}: EMA {row['epochs'][-1]['ema_right']} of {VAL}", flush=True)
    runs = read_runs(file)
    table = report(reference, runs)
    (args.output / "table.md").write_text(table + "\n")
    draw(reference, runs, args.output / "curves.png")
    print(table)


if __name__ == "__main__":
    main()
