"""The available memory, and a check that a batch can fit."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

from cswin.errors import UserError
from cswin.model.variants import Architecture
from cswin.profile import evaluation_bytes
from cswin.progress import size_text

DEVICE_MB = 8000  # host memory of the process of a device, including batches and a copy of the state
WORKER_MB = 600  # memory of a data worker
# Limit files of control groups (containers, Slurm) by the controller in /proc/self/cgroup; for version 2 it is empty.
LIMITS = {"": ("/sys/fs/cgroup", "memory.max"), "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")}


def host_megabytes(workers: int) -> int:
    """Host memory of the process of a device with its data workers, in MB: what a job requests for each."""
    return DEVICE_MB + WORKER_MB * workers


def host_memory() -> int | None:
    """Bytes that this process can use at most: of the machine, or the limit of its container or job; None if unknown."""
    found = []
    with contextlib.suppress(OSError, RuntimeError):
        found.append(psutil.virtual_memory().total)
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            for name in set(controllers.split(",")) & LIMITS.keys():
                found += _limits(*LIMITS[name], group)
    return min(found, default=None)


def _limits(root: str, file: str, group: str) -> list[int]:
    """The limits of a group and of its parents; inside a container only the container's own root may be visible."""
    folder, found = Path(root + group), []
    for place in (folder, *folder.parents):
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            found.append(int((place / file).read_text()))
        if str(place) == root:
            break
    return found


def device_memory(target: str) -> int | None:
    """Bytes of memory of this process's device; None if unknown."""
    if target == "CPU":
        return host_memory()
    import mindspore as ms

    with contextlib.suppress(Exception):  # an error of a driver must not stop a training that would fit
        return ms.hal.get_device_properties(0, target).total_memory or None  # 0: not initialised yet
    return None


def require_memory(arch: Architecture, batch: int, target: str, level: str = "O0") -> None:
    """Refuse a batch whose evaluation needs more memory than there is, according to a lower bound.

    Args:
        arch: architecture of the network.
        batch: images per forward pass.
        target: CPU or Ascend.
        level: level of mixed precision, see `cswin.profile`.

    Raises:
        UserError: with the needed memory, the available memory, and the largest batch within the bound.
    """
    images, tensors = evaluation_bytes(arch, level)
    host = images + tensors if target == "CPU" else images
    needs = [("this machine", host, host_memory())]
    needs += [] if target == "CPU" else [(f"the {target} device", tensors, device_memory(target))]
    for where, each, there in needs:
        if there is not None and batch * each > there:
            raise UserError(
                f"{batch:,} images at a time (runtime.eval_batch_size, --batch) need at least {size_text(batch * each)} of memory, but "
                f"{where} has {size_text(there)}: choose at most {there // each:,}, better a tenth of that"
            )
