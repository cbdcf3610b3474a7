"""The launcher of one node: starts its ranks through msrun, passes signals on, prints the first rank's output and the first failure.

If a rank fails, the launcher (or msrun) ends all ranks. The kernel kills msrun when the launcher dies, and the ranks when msrun dies.
So no process remains, whichever of them is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import psutil

from cswin.config.runtime import Runtime
from cswin.distributed.backend import refuse_simulation
from cswin.distributed.cluster import Cluster, find_cluster, require_devices
from cswin.distributed.files import SCHEDULER, LaunchFacts, Note, log_path
from cswin.distributed.ranks import ALONE, Ranks
from cswin.distributed.stopping import EXIT_DEFECT, EXIT_INTERRUPTED, EXIT_USER, STOP_SIGNALS
from cswin.distributed.worker import end_with_parent, run_rank
from cswin.errors import UserError

POLL = 0.1  # seconds
GRACE = 3.0  # seconds after the first failure in which other ranks can still write their notes
CHATTER = b"[INFO] DISTRIBUTED"  # MindSpore prints these lines at the end of every rank, independent of GLOG_v
LEAVE = 60.0  # seconds in which the processes must exit after all ranks have finished their work
LAST_LINES = 20  # of a failed rank's log
MSRUN_VARIABLES = ("MS_ROLE", "MS_SCHED_HOST", "MS_SCHED_PORT", "MS_WORKER_NUM", "MS_NODE_ID", "RANK_ID", "DEVICE_ID")


def run_on_devices(runtime: Runtime, folder: Path, work: Callable[[Ranks, float], int], check: Callable[[], object]) -> int:
    """Do work on runtime.devices devices: one in this process, several in one process each, which run this command again.

    Args:
        runtime: number of devices and nodes, and the host file.
        folder: receives a folder with the logs of each launch.
        work: the work of a rank. Arguments: the ranks, and the monotonic seconds of the command's start. Returns the exit code.
        check: called by the launcher before it starts a process, so that errors are reported once and early.

    Raises:
        UserError: the error of a rank, or if devices are missing.
    """
    facts = LaunchFacts.found()
    if facts is not None:
        return run_rank(lambda ranks: work(ranks, facts.started), runtime, facts)
    refuse_simulation()
    refuse_msrun()
    started = time.monotonic()
    if runtime.devices == 1:
        return work(ALONE, started)
    cluster = find_cluster(runtime)
    require_devices(runtime, len(cluster.local_ranks))
    check()
    return launch(cluster, folder, started, runtime.bind_cores)


def refuse_msrun() -> None:
    """Raise UserError if the environment is that of a process of msrun, although this package has not started it."""
    found = [name for name in MSRUN_VARIABLES if name in os.environ]
    if "MS_ROLE" in found:
        values = ", ".join(f"{name}={os.environ[name]}" for name in found)
        raise UserError(
            f"{values}: these variables say that msrun started this process. Give the command without msrun: cswin calls msrun "
            f"itself. If you did not use msrun, a shell profile or a container image sets them: unset {' '.join(found)}"
        )


def on_one_node(runtime: Runtime) -> Runtime:
    """The same runtime section with the devices of one node, for work that is too small for several nodes."""
    return runtime.model_copy(update={"devices": runtime.devices // runtime.nodes, "nodes": 1, "host_file": None})


def launch(cluster: Cluster, folder: Path, started: float, bind_cores: bool) -> int:
    """Run this process's own command as the ranks of this node.

    Returns:
        The command's exit code, the same on all ranks; 1 if a rank failed with a program error or was killed.

    Raises:
        UserError: if it is the first failure of a rank.
    """
    name = datetime.now().strftime("%Y%m%d-%H%M%S") + (f".node{cluster.node}" if cluster.nodes > 1 else "")
    folder = Path(folder).absolute() / name
    folder.mkdir(parents=True, exist_ok=True)
    facts = LaunchFacts(folder, started)
    logs = os.open(folder, os.O_RDONLY)  # msrun does not quote --log_dir in a shell command; /proc/self/fd/N needs no quotes
    command = [
        sys.executable, "-m", "mindspore.parallel.cluster.run",
        f"--worker_num={cluster.devices}", f"--local_worker_num={len(cluster.local_ranks)}",
        f"--master_addr={cluster.master}", f"--master_port={cluster.port}", f"--node_rank={cluster.node}",
        f"--log_dir=/proc/self/fd/{logs}", "--join=True", f"--tail_worker_log={cluster.devices}",  # no rank has this number: prints none
        f"--bind_core={bind_cores}",
        "python3", "-m", "cswin", *sys.argv[1:],
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # msrun starts the first python3 in PATH
    with _received() as signals, (folder / "msrun.log").open("w") as log:
        with _blocked():
            msrun = subprocess.Popen(
                command, env=os.environ | facts.export() | {"PATH": path}, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=end_with_parent, pass_fds=(logs,),
            )  # fmt: skip
        os.close(logs)
        return _Watch(folder, cluster, msrun, signals).run()


@dataclass
class _Watch:
    """A running launch."""

    folder: Path
    cluster: Cluster
    msrun: subprocess.Popen
    signals: list[int]
    passed_on: set[tuple[int, int]] = field(default_factory=set)  # (index of the signal in `signals`, rank)
    died: dict[int, float] = field(default_factory=dict)  # rank that ended without a result -> earliest possible time
    looked: float = field(default_factory=time.time)

    def run(self) -> int:
        give_up: float | None = None
        with contextlib.closing(self._echo()) as echo:
            while self.msrun.poll() is None:
                time.sleep(POLL)
                next(echo)
                self._pass_signals_on()
                if give_up is None and self._has_failed():
                    give_up = time.monotonic() + GRACE
                if give_up is None and self._have_ended():
                    give_up = time.monotonic() + LEAVE
                if give_up is not None and time.monotonic() > give_up:
                    self.msrun.kill()
                    self.msrun.wait()
            self._has_failed()
            next(echo)
        return self._outcome()

    def _notes(self) -> dict[int, Note]:
        notes = {rank: Note.read(self.folder, rank) for rank in self.cluster.local_ranks}
        return {rank: note for rank, note in notes.items() if note}

    def _have_ended(self) -> bool:
        """Whether all ranks of this node have finished their work."""
        notes = self._notes()
        return len(notes) == len(self.cluster.local_ranks) and all(note.code in _ENDS for note in notes.values())

    def _has_failed(self) -> bool:
        """Whether a rank or the scheduler has failed; remembers when which rank was killed."""
        earliest, self.looked = self.looked, time.time()
        notes = self._notes()
        for rank, note in notes.items():
            if note.code is None and not _runs(note.pid):
                again = Note.read(self.folder, rank)  # it may have ended between the two checks
                if again.code is None:
                    self.died.setdefault(rank, earliest)
        scheduler = Note.read(self.folder, SCHEDULER)
        working = any(note.code is None for note in notes.values())
        lost = working and scheduler is not None and not _runs(scheduler.pid)
        return bool(self.died) or lost or any(note.code not in (None, *_ENDS) for note in notes.values())

    def _pass_signals_on(self) -> None:
        """Send each received signal once to every rank; to a rank that has not started yet, when it has started."""
        if self.signals.count(signal.SIGINT) > 1:
            self.msrun.kill()
            raise KeyboardInterrupt
        for place, number in enumerate(self.signals):
            for rank, note in self._notes().items():
                if note.code is None and (place, rank) not in self.passed_on:
                    self.passed_on.add((place, rank))
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(note.pid, number)

    def _echo(self) -> Iterator[None]:
        """Each iteration writes the new output of the first rank to stderr."""
        while not log_path(self.folder, 0).exists():
            yield
        with log_path(self.folder, 0).open("rb") as log:
            rest = b""
            while True:
                *lines, rest = (rest + log.read()).split(b"\n")
                for line in lines:
                    if not line.startswith(CHATTER):
                        print(line.decode(errors="replace"), file=sys.stderr, flush=True)
                yield

    def _outcome(self) -> int:
        notes = self._notes()
        if self._have_ended():  # later failures, during shutdown, do not matter
            return max(note.code for note in notes.values())
        failures = {rank: (note.time, note) for rank, note in notes.items() if note.code not in (None, *_ENDS)}
        failures |= {rank: (when, notes[rank]) for rank, when in self.died.items()}
        if failures:
            rank = min(failures, key=lambda rank: failures[rank][0])
            return self._report(rank, failures[rank][1])
        self._tell("the ranks could not connect, or lost the connection", self.folder / "msrun.log")
        return EXIT_DEFECT

    def _report(self, rank: int, note: Note) -> int:
        """Print the first failure; if it is a UserError of the rank, raise it."""
        log = log_path(self.folder, rank)
        if note.code == EXIT_USER:
            raise UserError(f"{note.message}\n(rank {rank} of {self.cluster.devices}; all were ended; its log: {log})")
        if note.code is None and self.signals:
            name = signal.Signals(self.signals[0]).name
            self._tell(f"ended by {name}", log)
            return 128 + self.signals[0]
        what = note.message or "was killed, perhaps by the system because memory ran out"
        elsewhere = "; check the other nodes' launchers too, the first failure may be there" if self.cluster.nodes > 1 else ""
        self._tell(f"rank {rank} of {self.cluster.devices}: {what}; all were ended{elsewhere}", log)
        return EXIT_DEFECT

    def _tell(self, what: str, log: Path) -> None:
        lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:] if log.exists() else []
        quoted = "".join(f"  | {line}\n" for line in lines)
        print(f"cswin: {what}. The end of {log}:\n{quoted}", file=sys.stderr, end="", flush=True)


_ENDS = (0, EXIT_INTERRUPTED)  # exit codes of a rank that did not fail


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def _received() -> Iterator[list[int]]:
    """Inside the context, stop signals do not end this process but are appended to the list."""
    signals: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: signals.append(number)) for number in STOP_SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    """A process started in this context has the stop signals blocked. Otherwise msrun would end its ranks before they can save."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
