"""Where everything of a run and of a dataset lies: each path once. Rules and package take their paths from here.

Nothing is read or made. A stage's or a shard's name may be one of Snakemake's wildcards (`{stage}`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RESULTS = Path("results")  # of all runs, in the workflow's folder
SNAKEMAKE_LOCKS = Path(".snakemake/locks")
SUITE = Path("suite.yaml")  # which test sets are there; in the workflow's folder
AT_WORK = Path(".snakemake/at_work.json")  # locked, and names the process, as long as a snakemake runs jobs in the folder
IN_RUN = ("config", "expectations", "logs", "runtime", "stages")  # no stage can have one of these names
CHECKPOINT, RECORD, STATE = "checkpoint.safetensors", "record.json", "state"  # in a stage's folder
HISTORY, ATTEMPTS = "history.jsonl", "attempts.jsonl"
DATASET, PLAN = "dataset.json", "plan.json"  # in a dataset's folder; a plan is in each folder of shards as well


def _named(name: str) -> property:
    return property(lambda self: self.folder / name)


@dataclass(frozen=True)
class StageLayout:
    """A stage's files.

    Attributes:
        folder: results/<run>/<stage>.
    """

    folder: Path

    checkpoint = _named(CHECKPOINT)
    record = _named(RECORD)
    state = _named(STATE)
    history = _named(HISTORY)
    attempts = _named(ATTEMPTS)
    evaluation = _named("evaluation.json")
    predictions = _named("predictions.npz")
    per_class = _named("per_class.csv")
    confusions = _named("confusions.csv")

    def picture(self, name: str) -> Path:
        """A picture of the stage: classes, predictions or samples."""
        return self.folder / f"{name}.png"


@dataclass(frozen=True)
class RunLayout:
    """A run's files.

    Attributes:
        folder: results/<run>.
    """

    folder: Path

    card = _named("README.md")
    table_csv = _named("final_acc.csv")
    table_markdown = _named("final_acc.md")
    table_json = _named("final_acc.json")
    configs = _named("config")
    runtime = _named("config/runtime.yaml")
    expectations = _named("config/expectations.yaml")
    stages = _named("config/stages.yaml")
    suite = _named("suite.csv")

    def stage(self, name: str) -> StageLayout:
        """A stage's files."""
        return StageLayout(self.folder / name)

    def config(self, stage: str) -> Path:
        """A stage's resolved configuration."""
        return self.configs / f"{stage}.yaml"

    def picture(self, name: str) -> Path:
        """A picture of the run: curves or throughput."""
        return self.folder / f"{name}.png"

    def page(self, name: str) -> Path:
        """A page: table, configuration, data or provenance."""
        return self.folder / f"{name}.html"

    def log(self, job: str) -> Path:
        """What a job printed."""
        return self.folder / "logs" / f"{job}.log"

    @property
    def tables(self) -> list[Path]:
        """The results table in all formats."""
        return [self.table_csv, self.table_markdown, self.table_json]


LAST = RunLayout(RESULTS)  # the tables of the run that was finished last


@dataclass(frozen=True)
class DataLayout:
    """A dataset's files.

    Attributes:
        folder: <data.directory>/<data.name>.
    """

    folder: Path

    digits = _named("digits.tar.gz")  # the embedded images, packed like ImageNet
    images = _named("images")
    extracted = _named("extracted.json")
    fingerprint = _named("folder.json")  # of a folder of one's own
    rows = _named("manifest.csv.gz")
    manifest = _named("manifest.json")
    bad_images = _named("bad_images.csv")
    dataset = _named(DATASET)
    converted = _named("converted.json")  # which images were converted, whatever the size of the shards
    plan = _named(PLAN)

    def shards(self, shard_mb: int) -> Path:
        """Folder of the shards of one size."""
        return self.folder / "shards" / f"{shard_mb}MiB"

    def log(self, job: str) -> Path:
        """What a job printed."""
        return self.folder / "logs" / f"{job}.log"
