"""The interface to Slurm: job, job step, durations, partitions. No other module calls it or reads its variables."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass

from cswin.errors import UserError


def job_id() -> str | None:
    """Number of the job in which this process runs; None outside a job."""
    return os.environ.get("SLURM_JOB_ID") or None


def seconds_left() -> float | None:
    """Seconds until Slurm ends this job, counted from the start of the job.

    None outside a Slurm job, for a job without a limit, and if Slurm does not answer.
    """
    if (job := job_id()) is None:
        return None
    answer = _ask("squeue", "--noheader", "--jobs", job, "--format", "%L")
    return None if answer is None else clock_seconds(answer)


def clock_seconds(text: str) -> float | None:
    """Seconds from `[days-]hours:minutes:seconds` or `minutes:seconds`; None for UNLIMITED, INVALID and similar words."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def step_hosts(nodes: int) -> tuple[list[str], int]:
    """Host names of the job step's nodes, and the number of this one.

    Raises:
        UserError: outside an srun step with one task per node.
    """
    environment = os.environ
    if "SLURM_STEP_NUM_NODES" not in environment:  # a batch script runs on the first node only
        raise UserError(
            f"runtime.nodes: {nodes}, but this is no Slurm job step; start one launcher per node with `srun --nodes={nodes} "
            "--ntasks-per-node=1 cswin …`, or name the nodes in runtime.host_file"
        )
    if environment.get("SLURM_LOCALID", "0") != "0":
        raise UserError("Slurm started several launchers on this node; one starts all its ranks: srun --ntasks-per-node=1")
    expression = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    try:
        done = subprocess.run(["scontrol", "show", "hostnames", expression], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or error
        raise UserError(
            f"`scontrol show hostnames {expression}` failed ({str(reason).strip()}); the node names come from it"
        ) from None
    hosts = done.stdout.split()
    own = environment.get("SLURMD_NODENAME")
    return hosts, hosts.index(own) if own in hosts else int(environment.get("SLURM_NODEID", environment.get("SLURM_PROCID", 0)))


@dataclass(frozen=True)
class Partition:
    """The limits of a partition for a job; None: no limit.

    Attributes:
        name: name of the partition.
        minutes: maximum time.
        cores: cores of its largest node.
        devices: generic resources of a node, the largest number by name.
    """

    name: str
    minutes: int | None
    cores: int | None
    devices: dict[str, int]

    def allowed(self, minutes: int) -> int:
        """The minutes, at most the limit."""
        return min(minutes, self.minutes or minutes)

    def limits_below(self, minutes: int | None, cores: int) -> str | None:
        """A message if jobs would request more than the limits, which lower their requests; otherwise None."""
        over = [f"{self.minutes} min"] if minutes and self.allowed(minutes) < minutes else []
        over += [f"{self.cores} cores"] if self.cores and cores > self.cores else []
        return f"partition {self.name}: jobs request at most {' and '.join(over)}, its limit" if over else None

    def require_devices(self, name: str, count: int) -> None:
        """Raise UserError if no node has `count` devices of this name (`npu:8`)."""
        if self.devices.get(name, 0) < count:
            has = ", ".join(f"{key}:{number}" for key, number in sorted(self.devices.items())) or "no such devices"
            raise UserError(
                f"device_gres: training requests {name}:{count} per node, but the nodes of partition {self.name} have {has}; change "
                "device_gres in the profile, runtime.devices (and nodes), or the partition"
            )


def find_partition(name: str | None) -> Partition | None:
    """The partition of that name or, without a name, the cluster's default; None if Slurm does not answer.

    Raises:
        UserError: if there is no such partition, or no default.
    """
    answer = _ask("sinfo", "--noheader", "--format", "%P|%l|%c|%G")
    if not answer:
        return None
    rows = [line.split("|") for line in answer.splitlines() if line.count("|") == 3]
    default = next((row[0][:-1] for row in rows if row[0].endswith("*")), None)
    names = list(dict.fromkeys(row[0].rstrip("*") for row in rows))
    if (name or default) not in names:
        wrong = (
            f"slurm_partition: there is no {name!r} on this cluster" if name else "slurm_partition: this cluster has no default"
        )
        raise UserError(
            f"{wrong}; it has {', '.join(names)}. Set it in the profile, or --default-resources slurm_partition=NAME"
        )
    mine = [row for row in rows if row[0].rstrip("*") == (name or default)]
    seconds = [clock_seconds(row[1]) for row in mine]
    cores = [int(row[2].rstrip("+")) for row in mine if row[2].rstrip("+").isdigit()]
    devices: dict[str, int] = {}
    for row in mine:
        resources = re.sub(r"\([^)]*\)", "", row[3])  # without the list of sockets: npu:8(S:0-1)
        for kind, count in re.findall(r"(\w+)(?::[A-Za-z_]\w*)?:(\d+)", resources):
            devices[kind] = max(devices.get(kind, 0), int(count))
    minutes = None if None in seconds else int(max(seconds) // 60)
    return Partition(name or default, minutes, max(cores, default=None), devices)


def _ask(*command: str) -> str | None:
    """The output of a command; None if there is no Slurm or it does not answer."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
