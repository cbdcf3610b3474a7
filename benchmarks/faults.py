"""Interrupts the workflow repeatedly and prints the cost: kills survived, states damaged and recovered, steps lost, seconds to the
first resumed step.

    python benchmarks/faults.py --like FOLDER [--each 8] [--seed 0]

FOLDER is a finished run of the workflow (`snakemake` in a copy of this project). It is copied, without the results of later stages,
to a temporary folder. There `snakemake` trains the first stage again (--forcerun) and then the others. Each stage is interrupted
`--each` times by SIGKILL: at random times after the command, after random numbers of steps, while a state is written, in
validation, while the checkpoint is written. The victim is the whole process group, only the trainer, or only snakemake. In addition,
each trainer is asked to stop once, by a signal. After some kills the newest state is damaged, and once the folder is moved to another
path and, as far as the lease can see, to another machine. Each time `snakemake --unlock`, if needed, and the same command follow.
At the end the checkpoints must be bit-identical to those of the finished run, and the histories must have each step once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

COPIED = ("Snakefile", "rules", "config", "profiles", "data", ".snakemake/metadata")
MOMENTS = (  # of each stage, in this order; from the fourth stage on they are repeated
    ("steps", "time", "stop", "time", "saving", "time", "validation", "checkpoint"),
    ("steps", "time", "saving", "time", "stop", "time", "steps", "validation"),
    ("time", "steps", "time", "stop", "saving", "time", "checkpoint", "time"),
)
VICTIMS = ("group", "trainer", "group", "snakemake", "group")
STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
DAMAGES = ("a changed byte", "cut off", "empty")
LATEST = 10.0  # seconds after the command: the latest random time of a kill
SPEED = {"save_minutes": 0.01, "log_every": 1, "lease_timeout": 5.0}  # these changes cause no training
POLL = 0.01


@dataclass
class Kill:
    """One interruption and its result.

    Attributes:
        stage: the interrupted stage.
        moment: the event that triggered it.
        victim: what was killed: group, trainer or snakemake; or the signal that asked the trainer to stop.
        started: seconds from the command to the first completed step; None if it was killed before.
        lost: completed steps that are not in the newest state.
        lost_seconds: the time that they had taken.
        damaged: how the newest state was damaged afterwards; None if it was not.
    """

    stage: str
    moment: str
    victim: str
    started: float | None = None
    lost: int = 0
    lost_seconds: float = 0.0
    damaged: str | None = None

    @property
    def stop(self) -> bool:
        return self.moment == "stop"


@dataclass
class Report:
    """All interruptions, and the final comparison; `problems` is empty if the run equals an uninterrupted one."""

    kills: list[Kill] = field(default_factory=list)
    refused: int = 0
    moved: int = 0
    recovered: int = 0
    saving: list[dict] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def lines(self) -> Iterator[str]:
        """The figures, one per line."""
        kills, stops = ([kill for kill in self.kills if kill.stop == asked] for asked in (False, True))
        victims = {name: sum(kill.victim == name for kill in kills) for name in dict.fromkeys(VICTIMS)}
        started = [kill.started for kill in self.kills if kill.started is not None]
        damaged = [kill.damaged for kill in kills if kill.damaged]
        yield f"kills survived: {len(kills)} ({', '.join(f'{name} {count}' for name, count in victims.items())})"
        yield f"  before the first step: {sum(kill.started is None for kill in kills)}"
        yield f"  steps lost: mean {statistics.mean(kill.lost for kill in kills):.1f}, at most {max(kill.lost for kill in kills)}"
        yield (
            f"  seconds of training lost: at most {max(kill.lost_seconds for kill in kills):.1f} with a save every "
            f"{60 * SPEED['save_minutes']:.1f} s"
        )
        yield f"stops on request: {', '.join(kill.victim for kill in stops)}; steps lost: {sum(kill.lost for kill in stops)}"
        yield f"states damaged: {len(damaged)} ({', '.join(damaged)}), recovered from the one before: {self.recovered}"
        yield f"second trainers refused: {self.refused}; moved to another folder: {self.moved}"
        if started:
            low, middle, high = min(started), statistics.median(started), max(started)
            yield f"from the command to the first step: median {middle:.1f} s, {low:.1f} to {high:.1f}"
        if saves := sum(facts["saves"] for facts in self.saving):
            spent, waited = (sum(facts[key] for facts in self.saving) / saves for key in ("seconds", "held_up"))
            size = max(facts["bytes"] for facts in self.saving) / 1e6
            yield f"a save: {size:.1f} MB, {spent:.3f} s until it is on the disk, training waits {waited:.3f} s for it"
        yield f"all: {self.seconds:.0f} s"
        yield from self.problems or ["weights, histories: equal to those of the uninterrupted run"]


class Interruptions:
    """The workflow in a separate folder, trained with interruptions.

    Args:
        like: a finished run of the same configuration, not changed.
        folder: made; receives the run.
        chance: random generator for moments and damages.
        say: receives a line per kill.
    """

    def __init__(self, like: Path, folder: Path, chance: random.Random, say: Callable[[str], None] = print):
        self.like, self.folder, self.chance, self.say = Path(like), Path(folder), chance, say
        for part in COPIED:
            original, target = self.like / part, self.folder / part
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if original.is_dir() else shutil.copy2)(original, target)
        config = self.folder / "config/config.yaml"
        settings = yaml.safe_load(config.read_text())
        settings["runtime"] |= SPEED
        config.write_text(yaml.safe_dump(settings, sort_keys=False))
        self.run, self.stages = f"results/{settings['run']}", list(settings["stages"])
        for part in ("config", self.stages[0]):
            shutil.copytree(self.like / self.run / part, self.folder / self.run / part)
        self.epoch_steps = self._count_epoch_steps()
        self.report, self._output = Report(), self.folder.with_name(f"{self.folder.name}.txt")

    def train(self, each: int) -> Report:
        """Train all stages to the end, with `each` interruptions per stage.

        Raises:
            RuntimeError: if the workflow fails without an interruption.
        """
        began = time.monotonic()
        for position, stage in enumerate(self.stages):
            moments = (MOMENTS[position % len(MOMENTS)] * each)[:each]
            for number, moment in enumerate(moments):
                count = len(self.report.kills)
                kill = Kill(
                    stage, moment, (STOPS[position % len(STOPS)].name if moment == "stop" else VICTIMS[count % len(VICTIMS)])
                )
                if not self._interrupt(kill, () if count else ("--forcerun", f"train_{stage}")):
                    break  # the workflow has finished
                self.report.kills.append(kill)
                if moment == "steps" or (moment, number) == ("saving", 2):
                    kill.damaged = self._damage(stage)
                elif moment == "saving" and not self.report.moved:
                    self._move()
                self.say(f"{time.monotonic() - began:5.0f} s  {kill}")
        self._finish()
        self._compare()
        self.report.seconds = time.monotonic() - began
        return self.report

    def snakemake(self, *arguments: str) -> subprocess.Popen:
        """Start the command in its own process group."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with self._output.open("a") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "snakemake", *arguments], cwd=self.folder, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=os.environ | {"PATH": path, "GLOG_v": "3"},
            )  # fmt: skip

    def _interrupt(self, kill: Kill, arguments: tuple[str, ...]) -> bool:
        """Start the command, wait for the moment, interrupt; False if the workflow finished before."""
        process = self.snakemake(*arguments)
        try:
            if not self._wait_for_moment(kill, process):
                return False
            if kill.stop:
                self._ask_to_stop(kill, process)
            else:
                self._kill(kill, process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        kill.lost, kill.lost_seconds = self._lost(kill.stage)
        return True

    def _wait_for_moment(self, kill: Kill, process: subprocess.Popen) -> bool:
        before, began = None, time.monotonic()
        enough, latest = self.chance.randint(2, 8), began + self.chance.uniform(0.2, LATEST)
        while process.poll() is None:
            now, steps = time.monotonic(), self._steps(kill.stage)
            if before is None or steps < before:  # the history was cut to the newest state, or is new
                before = steps
            if kill.started is None and steps > before:
                kill.started = now - began
            if self._is_time(kill, steps >= before + enough, now >= latest):
                return True
            time.sleep(POLL)
        if process.returncode:
            raise RuntimeError(f"the workflow failed by itself; see {self._output}")
        return False

    def _is_time(self, kill: Kill, enough_steps: bool, late_enough: bool) -> bool:
        folder = self.folder / self.run / kill.stage
        if kill.moment == "time":
            return late_enough
        if kill.moment in ("steps", "stop"):
            return enough_steps
        if kill.moment == "saving":
            return enough_steps and any(folder.glob("state/.state-*.partial.safetensors"))
        if kill.moment == "validation":
            rows = self._rows(kill.stage)
            return bool(rows) and rows[-1]["kind"] == "step" and rows[-1]["step"] % self.epoch_steps == 0
        return any(folder.glob(".checkpoint.partial*")) or (folder / "checkpoint.safetensors").exists()

    def _ask_to_stop(self, kill: Kill, process: subprocess.Popen) -> None:
        number = signal.Signals[kill.victim]
        if number == signal.SIGINT:  # a terminal sends it to all processes at once
            os.killpg(process.pid, number)
        else:
            for pid in self._trainers(process.pid):
                os.kill(pid, number)
        while self._trainers(process.pid):
            time.sleep(POLL)
        if process.wait(timeout=600) == 0:
            raise RuntimeError("snakemake reported success although the trainer was stopped")
        if "exit code 75" not in self._attempt_output():
            self.report.problems.append(f"{kill.stage}: a trainer that was asked to stop did not report exit code 75")

    def _kill(self, kill: Kill, process: subprocess.Popen) -> None:
        """Kill the victim, then end all remaining processes."""
        from cswin.run.lease import holder

        trainers = self._trainers(process.pid)
        if kill.victim == "trainer" and trainers:
            for pid in trainers:
                os.kill(pid, signal.SIGKILL)
            if process.wait(timeout=600) == 0:
                raise RuntimeError("snakemake reported success although the trainer was killed")
            return
        if kill.victim == "snakemake":
            process.kill()
            process.wait()
            if not self.report.refused and (holder(self.folder / self.run / kill.stage) or {}).get("pid") in trainers:
                self._try_beside(trainers)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        while self._members(process.pid):
            time.sleep(POLL)
        self._unlock()

    def _try_beside(self, trainers: list[int]) -> None:
        """While a trainer is alive, the same command must be refused. The trainer is paused, so that it cannot end in between."""
        for pid in trainers:
            os.kill(pid, signal.SIGSTOP)
        self._unlock()
        second = self.snakemake()
        try:
            failed = second.wait(timeout=600)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(second.pid, signal.SIGKILL)
        if not failed or "another trainer is at work" not in self._attempt_output():
            self.report.problems.append("a second trainer was not refused")
        self.report.refused += 1

    def _move(self) -> None:
        """Copy the folder to another path with new dates, and change the lease so that its holder seems alive on another machine."""
        moved = self.folder.with_name(f"{self.folder.name}.moved")
        shutil.copytree(self.folder, moved, copy_function=shutil.copyfile)
        shutil.rmtree(self.folder)
        self.folder = moved
        for record in moved.glob(f"{self.run}/*/lease-*.json"):
            facts = json.loads(record.read_text())
            record.write_text(json.dumps(facts | {"processes": "another machine", "host": "another", "heartbeat": time.time()}))
        self.report.moved += 1

    def _attempt_output(self) -> str:
        """The end of the commands' output."""
        return self._output.read_text(errors="replace")[-5000:]

    def _unlock(self) -> None:
        locks = self.folder / ".snakemake/locks"
        if locks.exists() and any(locks.iterdir()) and self.snakemake("--unlock").wait(timeout=120):
            raise RuntimeError("snakemake --unlock failed")

    def _members(self, group: int) -> dict[int, list[bytes]]:
        """Command lines of the living processes of a group."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if os.getpgid(int(entry.name)) == group and (command := (entry / "cmdline").read_bytes()):
                    found[int(entry.name)] = command.split(b"\0")
            except OSError:  # it has just ended
                continue
        return found

    def _trainers(self, group: int) -> list[int]:
        return [pid for pid, command in self._members(group).items() if b"train" in command and b"--dataset" in command]

    def _damage(self, stage: str) -> str | None:
        """Damage the newest of at least two states."""
        self._count_recovered(stage)  # the next damaged state may have the same step, and so the same name
        states = sorted((self.folder / self.run / stage / "state").glob("state-*.safetensors"))
        if len(states) < 2:
            return None
        how, data = DAMAGES[sum(kill.damaged is not None for kill in self.report.kills) % len(DAMAGES)], states[-1].read_bytes()
        if how == "a changed byte":
            place = self.chance.randrange(len(data))
            data = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        states[-1].write_bytes(data if how == "a changed byte" else data[: len(data) // 2] if how == "cut off" else b"")
        return how

    def _count_recovered(self, stage: str) -> None:
        """Count and remove the states that a trainer found to be damaged."""
        for file in (self.folder / self.run / stage).glob("state*/*.damaged"):
            file.unlink()
            self.report.recovered += 1

    def _rows(self, stage: str) -> list[dict]:
        from cswin.run.history import read_history

        history = self.folder / self.run / stage / "history.jsonl"
        return read_history(history) if history.exists() else []

    def _steps(self, stage: str) -> int:
        history = self.folder / self.run / stage / "history.jsonl"
        return history.read_bytes().count(b'"kind": "step"') if history.exists() else 0

    def _lost(self, stage: str) -> tuple[int, float]:
        """Steps in the history beyond the newest state, and the seconds that they had taken."""
        states = sorted((self.folder / self.run / stage / "state").glob("state-*.safetensors"))
        saved = int(states[-1].stem.split("-")[1]) if states else 0
        rows = [row for row in self._rows(stage) if row["kind"] == "step" and row["step"] > saved] if states else []
        return len(rows), sum(row.get("seconds", 0.0) for row in rows)

    def _count_epoch_steps(self) -> int:
        from cswin.config.resolve import load_settings
        from cswin.data.store.dataset import Dataset

        settings = load_settings(self.folder / "config/config.yaml")
        images = Dataset.load(self.folder / settings.data.directory / settings.data.name / "dataset.json").images("train")
        return images // settings.optimizer.global_batch

    def _finish(self) -> None:
        if self.snakemake().wait():
            raise RuntimeError(f"the workflow failed by itself; see {self._output}")

    def _compare(self) -> None:
        for position, stage in enumerate(self.stages):
            mine, theirs = self.folder / self.run / stage, self.like / self.run / stage
            self.report.problems += [f"{stage}: {text}" for text in compare(mine, theirs)]
            aside = len(list(mine.glob("state.*")))
            if aside != (position == 0):  # only the forced stage has set a state aside, once
                self.report.problems.append(f"{stage}: {aside} states set aside")
            self._count_recovered(stage)
            attempts = map(json.loads, (mine / "attempts.jsonl").read_text().splitlines())
            self.report.saving += [row["saving"] for row in attempts if "saving" in row]


def compare(mine: Path, theirs: Path) -> list[str]:
    """Differences between two folders of a stage: tensors of the checkpoints, and rows of the histories."""
    from cswin.checkpoint import load_checkpoint
    from cswin.run.history import read_history

    problems = []
    first, second = (load_checkpoint(folder / "checkpoint.safetensors") for folder in (mine, theirs))
    for kind in ("weights", "ema"):
        a, b = getattr(first, kind), getattr(second, kind)
        problems += [f"{kind}: {name} differs" for name in {*a, *b} if not _same(a.get(name), b.get(name))]
    rows = [[_lasting(row) for row in read_history(folder / "history.jsonl")] for folder in (mine, theirs)]
    if rows[0] != rows[1]:
        problems.append(f"the histories differ ({len(rows[0])} and {len(rows[1])} rows)")
    return problems


def _same(a, b) -> bool:
    return a is not None and b is not None and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _lasting(row: dict) -> dict:
    """A row without the values that depend on speed and time."""
    return {key: value for key, value in row.items() if key not in ("images_per_s", "wait", "seconds", "time")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", type=Path, required=True, metavar="FOLDER", help="a finished run of the workflow")
    parser.add_argument("--each", type=int, default=8, metavar="N", help="interruptions in each stage (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        report = Interruptions(args.like, Path(folder, "run"), random.Random(args.seed)).train(args.each)
        print(*report.lines(), sep="\n")
        return bool(report.problems)


if __name__ == "__main__":
    sys.exit(main())
