"""One call of snakemake: its checked settings, what it looks for before it plans, and what happens before and after its jobs.

Snakemake sees that a file is missing, not that a user's images have changed or that a checkpoint is damaged. Such a file is looked
for by an input function, that is while Snakemake plans, and then treated like a file of a killed job. A dry run looks as well, and
writes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cswin.atomic import atomic_path
from cswin.config.files import read_yaml
from cswin.config.inputs import missing_inputs, named_paths
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
    """A call of snakemake, in the folder in which it runs.

    Args:
        snakemake: the workflow that was called.
        config: what Snakemake has merged from files and command line.

    Attributes:
        config: the same, with the command line's values typed.
        settings: from it, checked.
        run, data: where files are.
        resources: what jobs ask for.

    Raises:
        UserError: if the configuration is refused, or what Slurm would refuse.
    """

    def __init__(self, snakemake: Internals, config: dict[str, Any]):
        self.snakemake, self.presence = snakemake, Presence()
        self.config = typed_overrides(config, snakemake.overrides)
        try:
            for file in snakemake.config_files:
                read_yaml(file)  # Snakemake's reader takes the last one of two equal keys
            self.settings = parse_settings(self.config)
        except UserError as error:
            raise UserError(f"The configuration is refused:\n{error}") from None
        self.run, self.data = self.settings.layout, self.settings.data.layout
        if snakemake.plans and snakemake.on_cluster:
            require_submittable({"the project's folder": Path.cwd(), **named_paths(self.settings)})
        self.resources = available_resources(self.settings.runtime, snakemake)
        notes = missing_inputs(self.settings)  # Snakemake's own message names the file, this one the key and the remedy
        if snakemake.plans and not snakemake.is_dry_run and (advice := self.presence.advice()):
            notes.append(advice)
        for line in notes:
            print(line, file=sys.stderr)

    def start_of(self, stage: str) -> list[str]:
        """What a stage starts from: a list with one checkpoint, or none."""
        before = resolve_stage(self.settings, stage).previous
        checkpoint = self.run.stage(before).checkpoint if before else self.settings.pretrained
        return [str(checkpoint)] if checkpoint else []

    def record_before(self, stage: str) -> list[str]:
        """The record of the stage before: small, compared by content."""
        before = resolve_stage(self.settings, stage).previous
        return [str(self.run.stage(before).record)] if before else []

    def configuration(self, stage: str) -> Callable[..., str]:
        """A stage's configuration file, as an input function; a damaged checkpoint of the stage is made again."""

        def file(wildcards: Any) -> str:
            files = self.run.stage(stage)
            if self.snakemake.plans and is_damaged(files.folder):
                self.snakemake.force(files.checkpoint)
            return str(self.run.config(stage))

        return file

    def images_receipt(self, wildcards: Any) -> list[str]:
        """The note that extraction is complete, as an input function.

        A folder of one's own has none: the manifest is made again when names, sizes or dates of its files have changed since.
        """
        data = self.settings.data
        if data.own_images is None:
            return [str(self.data.extracted)]
        if self.snakemake.plans and folder_changed(data.images, self.data.fingerprint):
            self.snakemake.force(self.data.manifest)
        return []

    def start(self) -> None:
        """Before the first job: nobody else is at work here, and the jobs find what no job writes.

        The settings that only change speed are not the output of a job: none may run again when they change, and a job cannot wait
        for another one without that (rules/common.smk). A training job decides by content whether it trains; what it cannot see is
        noted for it: that its repetition was asked for.

        Raises:
            UserError: if another snakemake is at work here.
        """
        self.presence.take()
        print(
            f"run {self.settings.run}: {', '.join(self.settings.stages)}; table: {LAST.table_csv}, "
            f"everything else: {self.run.folder}/\n"
            "one stage again: --forcerun train_<stage>; only so far: --until train_<stage>; plan: -n; other run: --configfile FILE"
        )
        self.run.configs.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.run.runtime) as temporary:
            temporary.write_text(dump(self.settings.runtime), encoding="utf-8")
        forced = self.snakemake.forced_rules()
        stages = [self.run.stage(stage) for stage in self.settings.stages]
        for stage, following in zip(stages, [*stages[1:], None], strict=True):
            accept_if_used(stage.state, [stage.evaluation, *([following.attempts] if following else [])])
            if ask_to_repeat(stage.folder, f"train_{stage.folder.name}" in forced):
                print(
                    f"{stage.folder} is complete and goes back to its state: its checkpoint is missing or damaged, or its workflow was "
                    f"ended before its result was used. To train it again: cswin state {stage.folder} --set-aside, and the same command"
                )

    def succeed(self) -> None:
        """After the last job: to force a stage from now on means from nothing, and the table is shown.

        A stage that was not looked at (another target was asked for) may have been killed at its last moment, and goes on.
        """
        examined = self.snakemake.examined_rules()
        for stage in self.settings.stages:
            if f"train_{stage}" in examined:
                accept(self.run.stage(stage).state)
        if "final_acc" in examined:
            print(outcome(self.run.folder))
