"""A process that msrun has started: a rank, or the scheduler through which the ranks connect."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable

from cswin.config.runtime import Runtime
from cswin.distributed.backend import backend_of, start_backend
from cswin.distributed.files import SCHEDULER, LaunchFacts, Note
from cswin.distributed.ranks import Ranks
from cswin.distributed.stopping import EXIT_DEFECT, EXIT_USER
from cswin.errors import UserError

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def run_rank(work: Callable[[Ranks], int], runtime: Runtime, facts: LaunchFacts) -> int:
    """Join the other ranks, do the work, and write a note about the end.

    Returns:
        The exit code for msrun. msrun ends all ranks at any code other than 0, so a stop on request gives 0 here, and the first
        rank can finish its files. The launcher returns the code of the stop.
    """
    end_with_parent()
    if os.environ["MS_ROLE"] == "MS_SCHED":
        return _run_scheduler(facts)
    rank, pid = int(os.environ["RANK_ID"]), os.getpid()
    Note(pid).write(facts.folder, rank)
    try:
        code = work(_join(runtime))
    except UserError as error:
        Note(pid, EXIT_USER, str(error)).write(facts.folder, rank)
        if rank:  # not on the first rank: the launcher shows its output, and prints the error itself
            print(error, file=sys.stderr)
        return EXIT_USER
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        Note(pid, EXIT_DEFECT, _summary(error)).write(facts.folder, rank)
        return EXIT_DEFECT
    Note(pid, code).write(facts.folder, rank)
    return 0


def end_with_parent() -> None:
    """Make the kernel kill this process when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _join(runtime: Runtime) -> Ranks:
    from mindspore.communication import get_group_size, get_rank, init

    device = int(os.environ["DEVICE_ID"])  # msrun's number for the process on this node
    backend_of(runtime, device)
    init()
    if (size := get_group_size()) != runtime.devices:
        raise UserError(f"runtime.devices: {runtime.devices}, but {size} ranks have been started; the two must be equal")
    return Ranks(get_rank(), size, device)


def _summary(error: BaseException) -> str:
    """An error in one line, without MindSpore's frames and call stacks, which are in the log."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
    return " ".join([f"{type(error).__name__}:", *lines[:2]])


def _run_scheduler(facts: LaunchFacts) -> int:
    from mindspore.communication import init

    Note(os.getpid()).write(facts.folder, SCHEDULER)
    start_backend("CPU")
    init()  # returns when all ranks have left
    return 0
