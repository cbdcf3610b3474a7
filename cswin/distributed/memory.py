"""How much memory there is to compute in, and what is refused because it cannot fit."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

from cswin.errors import UserError
from cswin.model.variants import Architecture
from cswin.profile import evaluation_bytes
from cswin.progress import size_text

# Of control groups (containers, Slurm), by the name in /proc/self/cgroup: version 2 has none.
LIMITS = {"": ("/sys/fs/cgroup", "memory.max"), "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")}


def host_memory() -> int | None:
    """Bytes that this process may use at most: the machine's, or its container's or job's; None: not known."""
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
    """The limits of a group and of those around it; inside of a container only its own root may be visible."""
    folder, found = Path(root + group), []
    for place in (folder, *folder.parents):
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            found.append(int((place / file).read_text()))
        if str(place) == root:
            break
    return found


def device_memory(target: str) -> int | None:
    """Bytes of the memory in which this process's device computes; None: not known."""
    if target == "CPU":
        return host_memory()
    import mindspore as ms

    with contextlib.suppress(
        Exception
    ):  # whatever a device or its driver brings about, it must not stop a training that would fit
        return ms.hal.get_device_properties(0, target).total_memory or None  # 0: not initialised yet
    return None


def require_memory(arch: Architecture, batch: int, target: str, level: str = "O0") -> None:
    """Refuse a batch that cannot be evaluated here, by a lower bound.

    Args:
        arch: of the network.
        batch: images at a time.
        target: CPU or Ascend.
        level: of precision, see `cswin.profile`.

    Raises:
        UserError: with what is needed, what there is, and the largest batch that the bound admits.
    """
    images, tensors = evaluation_bytes(arch, level)
    host = images + tensors if target == "CPU" else images
    needs = [("this machine", host, host_memory())]
    needs += [] if target == "CPU" else [(f"the {target} device", tensors, device_memory(target))]
    for where, each, there in needs:
        if there is not None and batch * each > there:
            raise UserError(
                f"{batch:,} images at a time (runtime.eval_batch_size, --batch) need {size_text(batch * each)} of memory at least, "
                f"{where} has {size_text(there)}: choose at most {there // each:,}, better a tenth of it"
            )
