"""The resources that jobs request: memory, minutes, cores, devices. If Slurm answers, within the limits of its partition."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cswin.config.runtime import Runtime
from cswin.distributed.memory import host_megabytes
from cswin.distributed.slurm import Partition, find_partition
from cswin.errors import UserError
from cswin.workflow.internals import Internals

START_MINUTES = 15  # time of a job in addition to that of its images


@dataclass(frozen=True)
class Resources:
    """The resources that the jobs of a workflow request.

    Attributes:
        runtime: devices, nodes and workers.
        device: the scheduler's name of a device: `device_gres` in the profile.
        partition: the partition of the jobs; None if Slurm does not answer.
    """

    runtime: Runtime
    device: str = "npu"
    partition: Partition | None = None

    @property
    def devices(self) -> int:
        """Devices per node."""
        return self.runtime.devices // self.runtime.nodes

    @property
    def cores(self) -> int:
        """Cores for the data workers of one node."""
        return self.devices * self.runtime.workers

    def minutes(self, images: int, per_second: float) -> int:
        """Minutes to request for `images` at a rate of at least `per_second`."""
        asked = START_MINUTES + math.ceil(images / per_second / 60)
        return self.partition.allowed(asked) if self.partition else asked

    def on_devices(self, nodes: int = 1) -> dict[str, Any]:
        """The resources of a job that uses all devices of each of `nodes`.

        mem_mb: host memory per node. gres: its devices, except for CPUs. mpi, nodes, tasks: one launcher per node, only for several.
        """
        asked: dict[str, Any] = {"mem_mb": self.devices * host_megabytes(self.runtime.workers)}
        if self.runtime.device_target != "CPU":
            asked["gres"] = f"{self.device}:{self.devices}"
        if nodes > 1:
            asked |= {"mpi": "srun", "nodes": nodes, "tasks": nodes}
        return asked


def available_resources(runtime: Runtime, snakemake: Internals) -> Resources:
    """The resources of the jobs. With a profile for a cluster, the process that schedules the jobs first queries Slurm.

    Raises:
        UserError: for a request that Slurm would reject.
    """
    if not snakemake.on_cluster:
        return Resources(runtime)
    device = snakemake.default_resource("device_gres")
    if not snakemake.schedules:
        return Resources(runtime, device)
    name = snakemake.default_resource("slurm_partition") or snakemake.default_resource("partition")
    resources = Resources(runtime, device, find_partition(name))
    if (partition := resources.partition) is not None:
        if runtime.device_target != "CPU":
            partition.require_devices(device, resources.devices)
        minutes = snakemake.default_minutes
        if line := partition.limits_below(minutes, resources.cores):
            print(line, file=sys.stderr)
        if minutes is not None:
            snakemake.default_minutes = partition.allowed(minutes)
        if partition.cores:
            snakemake.limit_threads(partition.cores)
    return resources


def require_submittable(paths: Mapping[str, Path | str | None]) -> None:
    """Reject paths with characters that cluster executors do not quote in a job's script.

    Args:
        paths: paths by the names that the user knows.

    Raises:
        UserError: with the first such path, and the character.
    """
    for name, path in paths.items():
        if found := next((character for character in str(path) if character in '"$`\\\n'), None):
            raise UserError(f"{name}: {path}: jobs of a cluster cannot find a path with {found!r} in it; rename or move it")


# These three return text for a rule's `params`, quoted for the shell. Do not replace it by lists with `:q`: Snakemake compares params
# with those of finished jobs as text, so all jobs would run again.
def launcher(wildcards: Any, resources: Any, threads: int) -> str:
    """The prefix of the training command on several nodes, which starts one `cswin train` per node."""
    if "mpi" not in resources.keys():  # noqa: SIM118 (Snakemake's class)
        return ""
    return (
        f"{resources.mpi} --nodes={resources.nodes} --ntasks={resources.tasks} --ntasks-per-node=1 "
        f"--cpus-per-task={threads} --kill-on-bad-exit=1"
    )


def time_limit(wildcards: Any, resources: Any) -> str:
    """The option that stops the trainer before the time limit of its job, with a reserve for the job's start and end."""
    if "runtime" not in resources.keys():  # noqa: SIM118
        return ""
    seconds = 60 * resources.runtime
    return f"--max-runtime {seconds - min(120, seconds // 20)}"


def options(**values: Any) -> str:
    """`--name value` for each value that is not None."""
    words = [(f"--{name.replace('_', '-')}", str(value)) for name, value in values.items() if value is not None]
    return shlex.join(word for pair in words for word in pair)
