"""The input files of a stage, checked before anything is computed, and its identity."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cswin.checkpoint import file_sha256
from cswin.config.resolve import StageConfig, load_runtime, load_stage
from cswin.config.runtime import Runtime
from cswin.data.store.dataset import Dataset
from cswin.errors import UserError
from cswin.provenance import git_commit, versions
from cswin.run.identity import fingerprint


@dataclass(frozen=True)
class StageFiles:
    """The paths of a stage's inputs and outputs.

    Attributes:
        config, runtime: resolved configuration files.
        dataset: dataset.json of the converted images.
        folder: the stage's folder; receives history.jsonl, attempts.jsonl and state/ during training, checkpoint.safetensors and
            record.json at the end.
        previous: checkpoint of the previous stage, or the pretrained one.
    """

    config: Path
    runtime: Path
    dataset: Path
    folder: Path
    previous: Path | None


@dataclass(frozen=True)
class Stage:
    """The content of a stage's input files."""

    files: StageFiles
    config: StageConfig
    runtime: Runtime
    dataset: Dataset

    @classmethod
    def read(cls, files: StageFiles) -> Stage:
        """Read and check the files, before anything is computed.

        Raises:
            UserError: if a file is missing or the files do not belong together.
        """
        config, runtime = load_stage(files.config), load_runtime(files.runtime)
        dataset = Dataset.load(files.dataset)
        if len(dataset.class_names) != config.num_classes:
            raise UserError(
                f"{files.dataset}: holds {len(dataset.class_names)} classes, but data.classes is {config.num_classes}; set it to the "
                "number of classes in the data"
            )
        if (config.previous or config.pretrained) and files.previous is None:
            raise UserError(
                f"stage {config.stage} starts from {config.previous or config.pretrained}: give its checkpoint (--previous)"
            )
        if files.previous is not None and not files.previous.exists():
            raise UserError(
                f"{files.previous}: is missing, and stage {config.stage} starts from {config.previous or config.pretrained}; put it "
                "there (published weights: cswin weights get NAME)"
            )
        return cls(files, config, runtime, dataset)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """See `fingerprint`. Computing it reads the whole previous checkpoint."""
        return fingerprint(self.config, self.dataset.manifest_hash, self.files.previous)

    def provenance(self) -> dict[str, Any]:
        """All that is needed to describe and repeat an attempt. `identity` contains the resolved configuration."""
        read = {"config": self.files.config, "runtime": self.files.runtime, "dataset": self.files.dataset}
        inputs = {name: {"path": str(path), "sha256": file_sha256(path)} for name, path in read.items()}
        if self.files.previous is not None:
            inputs["checkpoint"] = {"path": str(self.files.previous), "sha256": self.identity["input_checkpoint"]}
        return {
            "command": shlex.join(sys.argv),
            "folder": str(Path.cwd()),
            "versions": versions(),
            "git": git_commit(),
            "device_target": self.runtime.device_target,
            "devices": self.runtime.devices,
            "inputs": inputs,
            "runtime": self.runtime.model_dump(mode="json"),
            "identity": self.identity,
        }
