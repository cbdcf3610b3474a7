"""All undocumented attributes of Snakemake that this project uses.

When Snakemake changes one of them, tests/workflow/test_internals.py names it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from snakemake.exceptions import WorkflowError
from snakemake.io import IOFile
from snakemake.logging import logger

from cswin.errors import UserError

HANDLER = "DefaultStreamHandler"  # Snakemake's name for the handler that writes to the terminal


def without_traceback(step: Callable[..., Any], *arguments: Any) -> Any:
    """Call `step`; Snakemake then shows a UserError without a traceback."""
    try:
        return step(*arguments)
    except UserError as error:
        raise WorkflowError(str(error)) from None


class Internals:
    """The internal state of a workflow.

    Args:
        workflow: the variable `workflow` of the Snakefile.
    """

    def __init__(self, workflow: Any):
        self._workflow = workflow

    @property
    def schedules(self) -> bool:
        """Whether this process schedules the jobs; False in the process of a single job."""
        return self._workflow.is_main_process

    @property
    def is_dry_run(self) -> bool:
        """Whether `-n` was given."""
        return self._workflow.output_settings.dryrun

    @property
    def config_files(self) -> list[str]:
        """The configuration files: those of `--configfile`; without this option, that of the Snakefile once it is read."""
        return self._workflow.configfiles

    @property
    def overrides(self) -> dict[str, Any]:
        """The values of `--config`."""
        return self._workflow.config_settings.config

    def default_resource(self, name: str) -> Any:
        """A value in the profile's default-resources, unevaluated; None if there is none."""
        defaults = self._workflow.resource_settings.default_resources
        return defaults[name].raw if defaults and name in defaults else None

    @property
    def on_cluster(self) -> bool:
        """Whether a profile for a cluster is used: only these set `device_gres`."""
        return self.default_resource("device_gres") is not None

    @property
    def default_minutes(self) -> int | None:
        """The profile's default `runtime` in minutes; None if there is none, or if it is an expression."""
        defaults = self._workflow.resource_settings.default_resources
        asked = defaults["runtime"] if defaults and "runtime" in defaults else None
        return None if asked is None or asked.is_evaluable() else asked.value

    @default_minutes.setter
    def default_minutes(self, minutes: int) -> None:
        self._workflow.resource_settings.default_resources["runtime"] = minutes

    def limit_threads(self, most: int) -> None:
        """Limit the number of cores of every job."""
        settings = self._workflow.resource_settings
        settings.max_threads = min(settings.max_threads or most, most)

    def force(self, output: Path) -> None:
        """Run the job that writes this file, as if the file were incomplete. Only for input functions, while the DAG is built."""
        self._workflow.dag.forcefiles.add(str(output))

    def recorded_input(self, output: Path) -> list[str]:
        """The input files of the job that wrote this file; empty if it is not known."""
        return self._workflow.persistence.input(IOFile(str(output))) or []

    def forced_rules(self) -> set[str]:
        """Rules with a job that was forced by the user (--forcerun, -f, -F) or by `force`."""
        dag = self._workflow.dag
        return {job.rule.name for job in dag.needrun_jobs() if dag.reason(job).forced}

    def examined_rules(self) -> set[str]:
        """Rules with a job in the DAG. After success, the outputs of these jobs exist and are up to date."""
        return {job.rule.name for job in self._workflow.dag.jobs}

    def terminal_handlers(self) -> Iterator[logging.StreamHandler]:
        """Snakemake's handlers for the terminal; none if the user wants the full output or a logger plugin is used."""
        settings = self._workflow.output_settings
        if self.schedules and not (settings.dryrun or settings.verbose or settings.printshellcmds):
            yield from (handler for handler in logger.handlers if handler.name == HANDLER)
