"""A small stage that is trained by one process or by several, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from converted import converted
from image_trees import image_bytes
from recipes import stage

from cswin.config.resolve import dump
from cswin.run.history import read_history

GLOBAL, PER_EPOCH, CLASSES, VAL = 24, 10, 4, 13  # 13: no number of ranks divides it
LR = 1e-3


def small_dataset(folder: Path, first: int = 0):
    """PER_EPOCH batches of noise for training, and VAL images for validation; `first` chooses the images."""
    files = {f"train/c{n % CLASSES}/{n}.JPEG": image_bytes(first + n) for n in range(GLOBAL * PER_EPOCH)}
    files |= {f"val/c{n % CLASSES}/{n}.JPEG": image_bytes(first + 1000 + n) for n in range(VAL)}
    return converted(folder, files)


class SmallStage:
    """A few epochs; mixup, cutmix and drop path are on.

    Args:
        folder: where its files go.
        dataset: see `small_dataset`.
        devices: ranks; with `accumulation` they share the global batch.
        epochs: of PER_EPOCH steps each.
        runtime: keys of the runtime section.
    """

    def __init__(self, folder: Path, dataset, devices: int = 1, accumulation: int = 1, epochs: int = 2, **runtime):
        self.folder, self.output, self.devices = folder, folder / "stage", devices
        config, settings = stage(
            data={"source": "folder", "folder": "images", "classes": CLASSES},
            model={"arch": "cswin_32_1121_digits_32", "drop_path": 0.2},
            augment={"mixup_group": 12},
            optimizer={"global_batch": GLOBAL, "amp_level": "O0"},
            schedule={"warmup_length": 0, "base_lr": LR, "min_lr": LR / 10},
            evaluation={"select": "last"},
            stages={"only": {"start_epoch": 0, "epochs": epochs}},
            runtime={
                "device_target": "CPU", "devices": devices, "accumulation": accumulation,
                "batch_size": GLOBAL // (devices * accumulation), "eval_batch_size": 3, "workers": 1, "worker_kind": "thread",
                "log_every": 2, "agree_every": 2, **runtime,
            },
        )  # fmt: skip
        folder.mkdir(parents=True)
        (folder / "stage.yaml").write_text(dump(config))
        (folder / "runtime.yaml").write_text(dump(settings))
        self.command = [
            sys.executable, "-m", "cswin", "train", "--config", folder / "stage.yaml", "--runtime", folder / "runtime.yaml",
            "--dataset", dataset.path, "--output", self.output, "--log", folder / "logs/train.log",
        ]  # fmt: skip

    def start(self, *arguments: str, within: tuple[str, ...] = ()) -> subprocess.Popen:
        """Start the command, optionally with the prefix `within`; its output is appended to console.txt."""
        with (self.folder / "console.txt").open("a") as output:
            return subprocess.Popen(
                [*within, *map(str, self.command), *arguments], stdout=output, stderr=output, stdin=subprocess.DEVNULL,
                env=os.environ | {"GLOG_v": "3"},
            )  # fmt: skip

    def train(self, *arguments: str) -> SmallStage:
        """Run the command; it must succeed."""
        assert self.start(*arguments).wait(timeout=600) == 0, self.console()
        return self

    def console(self) -> str:
        return (self.folder / "console.txt").read_text()

    def steps(self) -> int:
        """Steps in the history so far."""
        history = self.output / "history.jsonl"
        return sum(row["kind"] == "step" for row in read_history(history)) if history.exists() else 0

    def rows(self, kind: str) -> list[dict]:
        return [row for row in read_history(self.output / "history.jsonl") if row["kind"] == kind]

    def losses(self) -> np.ndarray:
        return np.array([row["loss"] for row in self.rows("step")])

    def notes(self) -> dict[str, dict]:
        """The notes of the ranks of the newest launch, by file name without suffix."""
        newest = sorted((self.folder / "logs/train.ranks").iterdir())[-1]
        return {file.stem: json.loads(file.read_text()) for file in newest.glob("*.json")}

    def values(self) -> dict:
        """The resolved runtime section."""
        return yaml.safe_load((self.folder / "runtime.yaml").read_text())
