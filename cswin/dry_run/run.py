"""The dry run of a stage: a child process compiles, its log and its graphs are read and checked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import cswin
from cswin.config.resolve import StageConfig, dump
from cswin.config.runtime import Runtime
from cswin.distributed.backend import CHIPS, SIMULATION
from cswin.dry_run.checks import Violation, violations
from cswin.dry_run.child import GRAPHS, INPUTS, RESULT
from cswin.dry_run.kernels import Kernel, chosen_libraries, read_kernels
from cswin.errors import UserError

CHILD = (sys.executable, "-m", "cswin.dry_run.child")
LIBRARIES = {"compute": ("aclnn", "aclop", "AI CPU"), "runtime": ("runtime",), "HCCL": ("HCCL",), "CPU": ("CPU",)}
_FAILED = re.compile(r"^\[(ERROR|CRITICAL)\]")
_HARMLESS = re.compile(r"_check_version\.py:|/actor_set/")  # at import, without all of CANN; a file that is in MindSpore's way


@dataclass(frozen=True)
class Task:
    """What is compiled, and for which chip: a key of `CHIPS`."""

    stage: StageConfig
    runtime: Runtime
    chip: str = "910"

    @property
    def product(self) -> str:
        """Number format of matrix products, by name."""
        optimizer = self.stage.optimizer
        return "float32" if optimizer.amp_level == "O0" else optimizer.amp_dtype

    @property
    def parts(self) -> tuple[str, ...]:
        """What there is to compile: names in `cswin.dry_run.child.COMPILE`."""
        return ("evaluation", "training") + (("exchanges",) if self.runtime.devices > 1 else ())

    def __str__(self) -> str:
        optimizer, runtime = self.stage.optimizer, self.runtime
        return (
            f"{self.stage.run}, {self.stage.stage}: {self.stage.model.arch}, {optimizer.amp_level}, products in {self.product}, "
            f"batch {runtime.batch_size} x {runtime.accumulation} on each of {runtime.devices} devices, chip {CHIPS[self.chip][0]}"
        )


@dataclass(frozen=True)
class Graph:
    """A compiled graph. A training step runs it `per_step` times."""

    name: str
    per_step: int
    seconds: float
    kernels: tuple[Kernel, ...]


@dataclass(frozen=True)
class Compiled:
    """The result of one child process.

    Attributes:
        what: a name of `Task.parts`.
        problem: MindSpore's reason if it could not compile.
        graphs: those that were compiled.
        peak: bytes of device memory that MindSpore plans, without the workspaces of kernels.
        libraries: of each operator, also of those outside of a graph.
        violations: of the checks.
    """

    what: str
    problem: str | None
    peak: int
    graphs: tuple[Graph, ...] = ()
    libraries: dict[str, str] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Time of compilation."""
        return sum(graph.seconds for graph in self.graphs)

    def launches(self) -> Counter[str]:
        """Kernels of a training step, or of one batch otherwise, by kind: keys of `LIBRARIES`, and AllReduce."""
        found: Counter[str] = Counter()
        for graph in self.graphs:
            for kernel in graph.kernels:
                kind = next((name for name, parts in LIBRARIES.items() if kernel.library in parts), "compute")
                found[kind] += graph.per_step or 1
                found["AllReduce"] += (graph.per_step or 1) * (kernel.operator == "AllReduce")
        return found


def dry_run(task: Task, what: str, folder: Path, command: tuple[str, ...] = CHILD) -> Compiled:
    """Compile one part of a task in a process of its own.

    Args:
        task: stage, runtime and chip.
        what: a name of `task.parts`.
        folder: receives the log and the graphs; must not exist.
        command: the child process, without its arguments.

    Raises:
        UserError: if CANN is not installed, or the chip has not what the configuration asks for.
    """
    for place in ("ir", "ir/rank_0"):
        (folder / place).mkdir(parents=True)
        (folder / place / "actor_set").touch()  # a file where MindSpore would write much, for minutes
    for name, section in zip(INPUTS, (task.stage, task.runtime), strict=True):
        (folder / name).write_text(dump(section))
    log, result = folder / "log", folder / RESULT
    with log.open("w") as output:
        done = subprocess.run(
            [*command, folder, what, CHIPS[task.chip][0]], cwd=folder, env=_environment(folder, task.runtime.devices),
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    if not result.exists():
        return Compiled(what, f"the process ended with code {done.returncode}: {_last_line(log)}", 0)
    values = json.loads(result.read_text())
    if values["refused"]:
        raise UserError(values["refused"])
    libraries = chosen_libraries(log)
    kernels = {str(file): tuple(read_kernels(file, libraries)) for file in (folder / "ir").rglob(GRAPHS)}
    graphs = tuple(
        Graph(graph["name"], graph["per_step"], graph["seconds"], sum((kernels[file] for file in graph["files"]), ()))
        for graph in values["graphs"]
    )
    found = violations(chain.from_iterable(kernels.values()), task.product)  # also in a graph whose compilation failed later
    problem = values["problem"] or _failure(log)
    return Compiled(what, problem, values["peak"], graphs, libraries, found)


def text(compiled: Compiled, memory: int) -> str:
    """The lines that `cswin dry-run` prints about one part; `memory` of the device is in bytes."""
    if compiled.problem:
        lines = [f"{compiled.what}: NOT COMPILED: {compiled.problem}"]
    else:
        found = compiled.launches()
        unit = "per step" if compiled.what == "training" else "per batch"
        counts = (
            f"{found['compute']:,} kernels that compute, {found['runtime']:,} of the runtime, {found['AllReduce']:,} AllReduce"
        )
        lines = [f"{compiled.what}: compiled in {compiled.seconds:.0f} s"]
        if compiled.what != "exchanges":
            fits = "" if compiled.peak < memory else ": DOES NOT FIT"
            lines += [
                f"  {counts} {unit}",
                f"  planned peak {compiled.peak / 2**30:.2f} GiB of {memory / 2**30:.0f}, without workspaces of kernels{fits}",
            ]
    return "\n".join([*lines, *(f"  VIOLATION {violation}" for violation in compiled.violations)])


def succeeded(compiled: Compiled, memory: int) -> bool:
    """Whether it was compiled, breaks no check and fits into the memory (bytes)."""
    return compiled.problem is None and not compiled.violations and compiled.peak < memory


def _environment(folder: Path, devices: int) -> dict[str, str]:
    """Of the child: one process stands for the first of `devices` ranks."""
    path = [str(Path(cswin.__file__).parents[1]), os.environ.get("PYTHONPATH")]
    return os.environ | {
        SIMULATION: "1", "RANK_SIZE": str(devices), "RANK_ID": "0", "DEVICE_ID": "0",
        "GLOG_v": "2", "GLOG_logtostderr": "1", "MS_SUBMODULE_LOG_v": "{DEVICE:1}",  # DEVICE names the library of each kernel
        "MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_SAVE_GRAPHS_PATH": str(folder / "ir"), "MS_DEV_DUMP_IR_PASSES": "graph_build",
        "MS_OM_PATH": str(folder), "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }  # fmt: skip


def _failure(log: Path) -> str | None:
    """The first error in the log: some of MindSpore's compilations fail without an exception."""
    with log.open(errors="replace") as lines:
        return next((line[:300].strip() for line in lines if _FAILED.match(line) and not _HARMLESS.search(line)), None)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"
