"""The paths of all files of a run, of a dataset and of published weights, for the rules and the package.

Nothing is read or written here. The name of a stage or a shard may be one of Snakemake's wildcards (`{stage}`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RESULTS = Path("results")  # of all runs, in the workflow's folder
WEIGHTS = Path("weights")  # published weights, shared by all runs in the workflow's folder
SNAKEMAKE_LOCKS = Path(".snakemake/locks")
SUITE = Path("suite.yaml")  # which test sets are available; in the workflow's folder
AT_WORK = Path(".snakemake/at_work.json")  # locked while a snakemake runs jobs in the folder; names its process
IN_RUN = ("config", "expectations", "logs", "runtime", "stages")  # reserved: no stage can have these names
CHECKPOINT, RECORD, STATE = "checkpoint.safetensors", "record.json", "state"  # in a stage's folder
HISTORY, ATTEMPTS = "history.jsonl", "attempts.jsonl"
DATASET, PLAN = "dataset.json", "plan.json"  # in a dataset's folder; each folder of shards has its own plan.json too


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
    weights = _named("config/weights.json")  # which published weights the first stage starts from
    suite = _named("suite.csv")
    preflight = _named("preflight.json")  # preflight.md is beside it
    preflight_receipt = _named("preflight.passed")  # always the same content

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
        """The log of a job."""
        return self.folder / "logs" / f"{job}.log"

    @property
    def tables(self) -> list[Path]:
        """The results table in all formats."""
        return [self.table_csv, self.table_markdown, self.table_json]


LAST = RunLayout(RESULTS)  # the tables of the last finished run


@dataclass(frozen=True)
class DataLayout:
    """A dataset's files.

    Attributes:
        folder: <data.directory>/<data.name>.
    """

    folder: Path

    digits = _named("digits.tar.gz")  # the digits of scikit-learn in the layout of ImageNet
    images = _named("images")
    extracted = _named("extracted.json")
    fingerprint = _named("folder.json")  # names, sizes and dates of the files of a user's own folder
    rows = _named("manifest.csv.gz")
    manifest = _named("manifest.json")
    bad_images = _named("bad_images.csv")
    dataset = _named(DATASET)
    converted = _named("converted.json")  # hash of the converted images; does not depend on the shard size
    plan = _named(PLAN)

    def shards(self, shard_mb: int) -> Path:
        """Folder of the shards of one size."""
        return self.folder / "shards" / f"{shard_mb}MiB"

    def log(self, job: str) -> Path:
        """The log of a job."""
        return self.folder / "logs" / f"{job}.log"


@dataclass(frozen=True)
class WeightsLayout:
    """Published weights.

    Attributes:
        folder: `weights`, or another one of the user's choice.
    """

    folder: Path

    def checkpoint(self, name: str) -> Path:
        """The converted weights."""
        return self.folder / f"{name}.safetensors"

    def checksum(self, name: str) -> Path:
        """The SHA-256 of the published file, as `sha256sum` writes it."""
        return self.folder / f"{name}.pth.sha256"

    def transfer(self, name: str) -> Path:
        """Folder of a file that is being fetched and converted."""
        return self.folder / ".transfer" / name
