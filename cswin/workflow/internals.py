"""All that this project uses of Snakemake beyond what its documentation promises.

When Snakemake changes one of these attributes, tests/workflow/test_internals.py names it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snakemake.logging import logger

HANDLER = "DefaultStreamHandler"  # Snakemake's name for the handler that writes to the terminal


class Internals:
    """A workflow's inner state.

    Args:
        workflow: the `workflow` of a Snakefile.
    """

    def __init__(self, workflow: Any):
        self._workflow = workflow

    @property
    def plans(self) -> bool:
        """Whether this process plans jobs and starts them; False in a job that it started on another machine."""
        return self._workflow.is_main_process

    @property
    def is_dry_run(self) -> bool:
        """Whether `-n` was given."""
        return self._workflow.output_settings.dryrun

    @property
    def config_files(self) -> list[str]:
        """Configuration files in use: those of `--configfile`, and from then on those of the Snakefile."""
        return self._workflow.configfiles

    @property
    def overrides(self) -> dict[str, Any]:
        """What `--config` gives."""
        return self._workflow.config_settings.config

    def default_resource(self, name: str) -> Any:
        """A value of the profile's default-resources as it is written there; None if there is none."""
        defaults = self._workflow.resource_settings.default_resources
        return defaults[name].raw if defaults and name in defaults else None

    @property
    def on_cluster(self) -> bool:
        """Whether a profile for a cluster is in use: it names `device_gres`."""
        return self.default_resource("device_gres") is not None

    @property
    def default_minutes(self) -> int | None:
        """What the profile's default `runtime` gives a job; None if it gives nothing, or an expression."""
        defaults = self._workflow.resource_settings.default_resources
        asked = defaults["runtime"] if defaults and "runtime" in defaults else None
        return None if asked is None or asked.is_evaluable() else asked.value

    @default_minutes.setter
    def default_minutes(self, minutes: int) -> None:
        self._workflow.resource_settings.default_resources["runtime"] = minutes

    def limit_threads(self, most: int) -> None:
        """Let no job have more cores than that."""
        settings = self._workflow.resource_settings
        settings.max_threads = min(settings.max_threads or most, most)

    def force(self, output: Path) -> None:
        """Let the job that makes this file run, as if the file were that of a killed job; for input functions, during planning."""
        self._workflow.dag.forcefiles.add(str(output))

    def forced_rules(self) -> set[str]:
        """Rules with a job that a user has asked to run (--forcerun, -f, -F), or `force`."""
        dag = self._workflow.dag
        return {job.rule.name for job in dag.needrun_jobs() if dag.reason(job).forced}

    def examined_rules(self) -> set[str]:
        """Rules with a job that Snakemake looked at, so that after success its output is there and up to date."""
        return {job.rule.name for job in self._workflow.dag.jobs}

    def terminal_handlers(self) -> Iterator[logging.StreamHandler]:
        """What writes to the terminal, unless a user has asked for all of it, or a logger plugin does it."""
        settings = self._workflow.output_settings
        if self.plans and not (settings.dryrun or settings.verbose or settings.printshellcmds):
            yield from (handler for handler in logger.handlers if handler.name == HANDLER)
