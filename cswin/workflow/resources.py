"""What jobs ask for: memory, minutes, cores, devices; never more than Slurm's partition gives, where Slurm can be asked."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cswin.config.runtime import Runtime
from cswin.distributed.slurm import Partition, find_partition
from cswin.errors import UserError
from cswin.workflow.internals import Internals

DEVICE_MB = 8000  # host memory of a device's process, with batches and a copy of the state
WORKER_MB = 600  # of a data worker
START_MINUTES = 15  # of a job, beside its images


@dataclass(frozen=True)
class Resources:
    """What the jobs of a workflow ask for.

    Attributes:
        runtime: devices, nodes and workers.
        device: the scheduler's name of a device: `device_gres` in the profile.
        partition: where jobs run; None where Slurm does not tell.
    """

    runtime: Runtime
    device: str = "npu"
    partition: Partition | None = None

    @property
    def devices(self) -> int:
        """Devices of one node."""
        return self.runtime.devices // self.runtime.nodes

    @property
    def cores(self) -> int:
        """Cores that data workers keep busy on one node."""
        return self.devices * self.runtime.workers

    def minutes(self, images: int, per_second: float) -> int:
        """Run time to ask for where `images` are handled at no less than `per_second`."""
        asked = START_MINUTES + math.ceil(images / per_second / 60)
        return self.partition.allowed(asked) if self.partition else asked

    def on_devices(self, nodes: int = 1) -> dict[str, Any]:
        """To compute on all devices of each of `nodes`; nothing is named that does not apply.

        mem_mb: host memory of a node. gres: its devices; CPUs have none. mpi, nodes, tasks: one launcher on each node.
        """
        asked: dict[str, Any] = {"mem_mb": self.devices * (DEVICE_MB + WORKER_MB * self.runtime.workers)}
        if self.runtime.device_target != "CPU":
            asked["gres"] = f"{self.device}:{self.devices}"
        if nodes > 1:
            asked |= {"mpi": "srun", "nodes": nodes, "tasks": nodes}
        return asked


def available_resources(runtime: Runtime, snakemake: Internals) -> Resources:
    """What jobs may ask for. With a profile for a cluster (it names `device_gres`), where Snakemake plans, Slurm is asked first.

    Raises:
        UserError: for what Slurm would refuse.
    """
    if not snakemake.on_cluster:
        return Resources(runtime)
    device = snakemake.default_resource("device_gres")
    if not snakemake.plans:
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
    """Refuse what cluster executors do not quote when they name a job's files and the project's folder.

    Args:
        paths: by what the user knows them as.

    Raises:
        UserError: naming the first one, and the character.
    """
    for name, path in paths.items():
        if found := next((character for character in str(path) if character in '"$`\\\n'), None):
            raise UserError(f"{name}: {path}: jobs of a cluster cannot find a path with {found!r} in it; rename or move it")


# These three give text for a rule's `params`, quoted for the shell. Lists with `:q` would do too, but Snakemake compares params with
# those of finished jobs by their text: all jobs would run again.
def launcher(wildcards: Any, resources: Any, threads: int) -> str:
    """What comes before the training command: one `cswin train` on each of several nodes."""
    if "mpi" not in resources.keys():  # noqa: SIM118 (Snakemake's class)
        return ""
    return (
        f"{resources.mpi} --nodes={resources.nodes} --ntasks={resources.tasks} --ntasks-per-node=1 "
        f"--cpus-per-task={threads} --kill-on-bad-exit=1"
    )


def time_limit(wildcards: Any, resources: Any) -> str:
    """The option by which the trainer ends before its job's time is over. What is kept back is for the job's start and end."""
    if "runtime" not in resources.keys():  # noqa: SIM118
        return ""
    seconds = 60 * resources.runtime
    return f"--max-runtime {seconds - min(120, seconds // 20)}"


def options(**values: Any) -> str:
    """`--name value` for each value that is not None."""
    words = [(f"--{name.replace('_', '-')}", str(value)) for name, value in values.items() if value is not None]
    return shlex.join(word for pair in words for word in pair)
