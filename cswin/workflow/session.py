"""One call of snakemake: its checked settings, checks while the DAG is built, and hooks before and after the jobs.

Snakemake notices missing files, but not changed images or a damaged checkpoint. Input functions check these while Snakemake builds
the DAG, and force the jobs that write the files again. A dry run makes the same checks and writes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cswin.atomic import atomic_path
from cswin.config.files import read_yaml
from cswin.config.inputs import missing_inputs, named_paths, pretrained_file
from cswin.config.overrides import typed_overrides
from cswin.config.resolve import dump, parse_settings, resolve_stage
from cswin.data.sources.fingerprint import folder_changed
from cswin.errors import UserError
from cswin.layout import LAST
from cswin.report.headline import outcome
from cswin.run.repeat import accept, accept_if_used, ask_to_repeat, is_damaged
from cswin.workflow.internals import Internals
from cswin.workflow.presence import Presence
from cswin.workflow.resources import available_resources, require_submittable


class Session:
    """A call of snakemake in the current folder.

    Args:
        snakemake: the workflow.
        config: the configuration that Snakemake has merged from files and command line.

    Attributes:
        config: the same, with the types of the command line's values corrected.
        settings: the checked configuration.
        run, data: the paths of the files.
        resources: the resources of the jobs.

    Raises:
        UserError: if the configuration is invalid, or if Slurm would reject a request.
    """

    def __init__(self, snakemake: Internals, config: dict[str, Any]):
        self.snakemake, self.presence = snakemake, Presence()
        self.config = typed_overrides(config, snakemake.overrides)
        try:
            for file in snakemake.config_files:
                read_yaml(file)  # rejects duplicate keys; Snakemake's reader silently uses the last one
            self.settings = parse_settings(self.config)
        except UserError as error:
            raise UserError(f"The configuration is refused:\n{error}") from None
        self.run, self.data = self.settings.layout, self.settings.data.layout
        self._check_paths()
        if snakemake.schedules and snakemake.on_cluster:
            require_submittable({"the project's folder": Path.cwd(), **named_paths(self.settings)})
        self.resources = available_resources(self.settings.runtime, snakemake)
        notes = missing_inputs(self.settings)  # Snakemake's own message names only the file, these the key and the remedy
        if snakemake.schedules and not snakemake.is_dry_run and (advice := self.presence.advice()):
            notes.append(advice)
        for line in notes:
            print(line, file=sys.stderr)

    def _check_paths(self) -> None:
        """Snakemake takes a folder for the file of that name, and ends with a traceback where a file is in a folder's place."""
        for file in filter(Path.is_dir, LAST.tables):
            raise UserError(f"{file}: is a folder, but the table is written to this name; move the folder away")
        stages = [self.run.stage(name).folder for name in self.settings.stages]
        for folder in filter(
            Path.is_file, (self.run.folder.parent, self.run.folder, self.run.configs, *stages, self.data.folder)
        ):
            raise UserError(f"{folder}: is a file, but a folder of this name is needed; move the file away")

    def start_of(self, stage: str) -> str | None:
        """The checkpoint that a stage starts from, if it starts from one."""
        before = resolve_stage(self.settings, stage).previous
        return str(self.run.stage(before).checkpoint) if before else pretrained_file(self.settings)

    def checkpoint_before(self, stage: str) -> list[str]:
        """The same as an input, but for published weights: Snakemake would remove them before it fetches them again."""
        is_first = resolve_stage(self.settings, stage).previous is None
        checkpoint = self.start_of(stage)
        return [] if checkpoint is None or (is_first and self.settings.published) else [checkpoint]

    def record_before(self, stage: str) -> list[str] | Callable[..., str]:
        """The record of what a stage starts from: small, so Snakemake compares its content."""
        if before := resolve_stage(self.settings, stage).previous:
            return [str(self.run.stage(before).record)]
        return self._weights_receipt if self.settings.published else []

    def _weights_receipt(self, wildcards: Any) -> str:
        """The receipt of published weights, as an input function that also forces the job if they are needed and missing."""
        first = next(iter(self.settings.stages))
        files, weights = self.run.stage(first), Path(pretrained_file(self.settings))
        if self.snakemake.schedules and not weights.exists() and (not files.record.exists() or is_damaged(files.folder)):
            self.snakemake.force(self.run.weights)
        return str(self.run.weights)

    def preflight(self, stage: str, file: Path) -> Callable[..., list[str]]:
        """A file of the preflight as an input of a stage's training, as an input function: a list, empty if there is none.

        Only the first stage has it, if it is wanted. A stage that has been trained keeps the inputs it had, because Snakemake runs
        a job again when the set of its inputs changes, and `runtime` must not cause training.
        """

        def files(wildcards: Any) -> list[str]:
            record = self.run.stage(stage).record
            wanted = self.settings.runtime.wants_preflight
            if record.exists():
                wanted = str(file) in self.snakemake.recorded_input(record)
            return [str(file)] if wanted and stage == next(iter(self.settings.stages)) else []

        return files

    def configuration(self, stage: str) -> Callable[..., str]:
        """A stage's configuration file, as an input function that also forces the job if the stage's checkpoint is damaged."""

        def file(wildcards: Any) -> str:
            files = self.run.stage(stage)
            if self.snakemake.schedules and is_damaged(files.folder):
                self.snakemake.force(files.checkpoint)
            return str(self.run.config(stage))

        return file

    def images_receipt(self, wildcards: Any) -> list[str]:
        """The receipt of the extraction, as an input function.

        With data.source: folder there is none; the manifest is made again if names, sizes or dates of the files have changed.
        """
        data = self.settings.data
        if data.own_images is None:
            return [str(self.data.extracted)]
        if self.snakemake.schedules and folder_changed(data.images, self.data.fingerprint):
            self.snakemake.force(self.data.manifest)
        return []

    def start(self) -> None:
        """Before the first job: take the lock of the folder, and write the files that no job writes.

        The settings that only affect speed are not the output of a job, because no job may run again when they change
        (rules/common.smk). A training job decides by content whether it trains. It cannot see a --forcerun, so this is noted here.

        Raises:
            UserError: if another snakemake runs jobs here.
        """
        self.presence.take()
        print(
            f"run {self.settings.run}: {', '.join(self.settings.stages)}; table: {LAST.table_csv}, "
            f"everything else: {self.run.folder}/\n"
            "retrain a stage: --forcerun train_<stage>; stop after a stage: --until train_<stage>; dry run: -n; another run: "
            "--configfile FILE"
        )
        try:
            self.run.configs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.run.configs}: cannot be made a folder ({error.strerror}); check the permissions") from None
        with atomic_path(self.run.runtime) as temporary:
            temporary.write_text(dump(self.settings.runtime), encoding="utf-8")
        forced = self.snakemake.forced_rules()
        stages = [self.run.stage(stage) for stage in self.settings.stages]
        for stage, following in zip(stages, [*stages[1:], None], strict=True):
            accept_if_used(stage.state, [stage.evaluation, *([following.attempts] if following else [])])
            if ask_to_repeat(stage.folder, f"train_{stage.folder.name}" in forced):
                print(
                    f"{stage.folder} is complete and is not trained again: its checkpoint is missing or damaged, or the workflow was "
                    "interrupted before its result was used, so its files are written from its state. To train it again: "
                    f"cswin state {stage.folder} --set-aside, then the same command"
                )

    def succeed(self) -> None:
        """After the last job: mark the stages as accepted, and show the table.

        Stages outside the DAG (another target was requested) are not marked: they may have been killed just before their end.
        """
        examined = self.snakemake.examined_rules()
        for stage in self.settings.stages:
            if f"train_{stage}" in examined:
                accept(self.run.stage(stage).state)
        if "final_acc" in examined:
            print(outcome(self.run.folder))
