"""Which device computes."""

from __future__ import annotations

import argparse
import os

from cswin.errors import UserError

TARGETS = ("CPU", "Ascend")


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """`--device-target` and `--device-id`, for `select_device`."""
    parser.add_argument("--device-target", choices=TARGETS, default="CPU", help="what computes (default: CPU)")
    parser.add_argument("--device-id", type=int, default=0, metavar="N", help="which of several NPUs (default: 0)")


def select_device(target: str = "CPU", device_id: int = 0) -> None:
    """Make MindSpore compute there; to be called before anything is computed, again only with the same device.

    Raises:
        UserError: if this process cannot have the device, with MindSpore's reason.
    """
    import mindspore as ms

    wanted = (target, 0 if target == "CPU" else device_id)
    if target == "CPU":
        # Else the main thread spins while it waits for a graph, on a core that the graph's operations need.
        os.environ.setdefault("MS_DEV_HOST_BLOCKING_RUN", "1")
    try:
        ms.set_device(*wanted)
    except (RuntimeError, ValueError) as error:
        if tuple(ms.get_current_device()) == wanted:  # MindSpore refuses any change after the first kernel
            return
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"device {target} {device_id} cannot be used: {reason}") from error
