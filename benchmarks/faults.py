"""Kills the workflow again and again and shows what it cost: kills survived, states damaged and recovered, steps lost, seconds to
the first resumed step; and what saving a state costs.

    python benchmarks/faults.py kills --like FOLDER [--kills 21] [--seed 0]
    python benchmarks/faults.py saves [cswin_64_24322_small_224_report ...]

FOLDER holds a finished run of the workflow (`snakemake` in a copy of this project). Its data are copied, its stages are trained again
in a temporary folder through `snakemake`, and interrupted by SIGKILL: at random times after the command, after random numbers of
steps, while a state is written, in validation, while the checkpoint is written; the whole process group, the trainer alone or
snakemake alone. After some kills the newest state is damaged. Each time `snakemake --unlock`, where it is needed, and the same command
follow. In the end the checkpoints must be those of the finished run to the bit, and the histories must have each step once.
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

import numpy as np
import yaml

WORKFLOW = ("Snakefile", "rules", "config", "profiles", "data")
MOMENTS = ("time", "steps", "saving", "time", "steps", "validation", "checkpoint")  # each stage's kills come in this order
VICTIMS = ("group", "trainer", "group", "snakemake", "group")
DAMAGES = ("a changed byte", "cut off", "empty")
SAVE_MINUTES = 0.01
POLL = 0.01


@dataclass
class Kill:
    """One interruption and what came of it.

    Attributes:
        moment: what was waited for.
        victim: who was killed: group, trainer or snakemake.
        started: seconds from the command to the first step that was done; None if it was killed before.
        lost: steps that were done and are not in the newest state.
        lost_seconds: how long they had taken.
        damaged: how the newest state was damaged afterwards, if it was.
    """

    moment: str
    victim: str
    started: float | None = None
    lost: int = 0
    lost_seconds: float = 0.0
    damaged: str | None = None


@dataclass
class Report:
    """All kills, and what was found in the end; `problems` is empty if the run is as if nothing had happened."""

    kills: list[Kill] = field(default_factory=list)
    refused: int = 0
    recovered: int = 0
    saving: list[dict] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def lines(self) -> Iterator[str]:
        """The figures, one a line."""
        started = [kill.started for kill in self.kills if kill.started is not None]
        victims = {name: sum(kill.victim == name for kill in self.kills) for name in dict.fromkeys(VICTIMS)}
        yield f"kills survived: {len(self.kills)} ({', '.join(f'{name} {count}' for name, count in victims.items())})"
        yield f"after steps had been done: {len(started)}, before: {len(self.kills) - len(started)}"
        damaged = [kill.damaged for kill in self.kills if kill.damaged]
        yield f"states damaged: {len(damaged)} ({', '.join(damaged)}), recovered from the one before: {self.recovered}"
        yield f"second trainers turned away: {self.refused}"
        if started:
            yield (
                f"from the command to the first step, s: median {statistics.median(started):.1f}, "
                f"{min(started):.1f} to {max(started):.1f}"
            )
        lost = [kill.lost for kill in self.kills]
        worst = max(kill.lost_seconds for kill in self.kills)
        yield f"steps lost at a kill: mean {statistics.mean(lost):.1f}, at most {max(lost)}; {worst:.1f} s at most"
        yield f"interval between saves: {60 * SAVE_MINUTES:.1f} s"
        saves = sum(facts["saves"] for facts in self.saving)
        if saves:
            spent, waited = (sum(facts[key] for facts in self.saving) / saves for key in ("seconds", "held_up"))
            size = self.saving[-1]["bytes"] / 1e6
            yield f"a save: {size:.1f} MB, {spent:.3f} s until it is on the disk, training waits {waited:.3f} s for it"
        yield f"all: {self.seconds:.0f} s"
        yield from self.problems or ["weights, histories: equal to those of the uninterrupted run"]


class Interruptions:
    """The workflow in a folder of its own, trained with interruptions.

    Args:
        like: a finished run of the same configuration, not changed.
        folder: made; receives the run.
        chance: decides moments, victims and damages.
        say: receives a line per kill.
    """

    def __init__(self, like: Path, folder: Path, chance: random.Random, say: Callable[[str], None] = print):
        self.like, self.folder, self.chance, self.say = Path(like), Path(folder), chance, say
        self.folder.mkdir(parents=True)
        for part in WORKFLOW:
            source = self.like / part
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, self.folder / part)
        config = self.folder / "config/config.yaml"
        settings = yaml.safe_load(config.read_text())
        settings["runtime"] |= {"save_minutes": SAVE_MINUTES, "log_every": 1}  # only speed: not a reason to train again
        config.write_text(yaml.safe_dump(settings, sort_keys=False))
        self.run, self.stages = f"results/{settings['run']}", list(settings["stages"])
        self.report, self._output = Report(), (self.folder / "output.txt").open("a")

    def train(self, kills: int) -> Report:
        """Train all stages with so many kills, to the end.

        Raises:
            RuntimeError: if the workflow fails where nobody interrupted it.
        """
        began = time.monotonic()
        per_stage = -(-kills // len(self.stages))
        for stage in self.stages:
            for number in range(min(per_stage, kills - len(self.report.kills))):
                moment = MOMENTS[number % len(MOMENTS)]
                kill = Kill(moment, VICTIMS[len(self.report.kills) % len(VICTIMS)])
                if not self._interrupt(kill, stage):
                    break  # it went through; the stages that follow take the kills that are left
                self.report.kills.append(kill)
                if moment in ("steps", "saving") and number % 3 == 1:
                    kill.damaged = self._damage(stage)
                self.say(f"{time.monotonic() - began:5.0f} s  {stage} {kill}")
        self._finish()
        self._compare()
        self.report.seconds = time.monotonic() - began
        return self.report

    def snakemake(self, *arguments: str) -> subprocess.Popen:
        """Start the command in a process group of its own."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", *arguments], cwd=self.folder, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output, env=os.environ | {"PATH": path, "GLOG_v": "3"},
        )  # fmt: skip

    def _interrupt(self, kill: Kill, stage: str) -> bool:
        """Give the command, wait for the moment, kill; False if the workflow came to its end before."""
        before, began = self._steps(stage), time.monotonic()
        wanted = before + self.chance.randint(2, 8)
        until = began + self.chance.uniform(0.2, 14.0)
        process = self.snakemake()
        try:
            return self._watch(kill, stage, process, before, wanted, until, began)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise

    def _watch(self, kill, stage, process, before, wanted, until, began) -> bool:
        while True:
            if process.poll() is not None:
                if process.returncode:
                    raise RuntimeError(f"the workflow failed by itself; see {self.folder / 'output.txt'}")
                return False
            now, steps = time.monotonic(), self._steps(stage)
            if kill.started is None and steps > before:
                kill.started = now - began
            if self._is_time(kill.moment, stage, steps >= wanted, now >= until):
                break
            time.sleep(POLL)
        self._kill(kill.victim, process, stage)
        kill.lost, kill.lost_seconds = self._lost(stage)
        return True

    def _is_time(self, moment: str, stage: str, enough_steps: bool, late_enough: bool) -> bool:
        folder = self.folder / self.run / stage
        if moment == "time":
            return late_enough
        if moment == "steps":
            return enough_steps
        if moment == "saving":
            return enough_steps and any(folder.glob("state/.state-*.partial.safetensors"))
        if moment == "validation":
            rows = self._rows(stage)
            return bool(rows) and rows[-1]["kind"] == "step" and rows[-1]["step"] % self._epoch_steps == 0
        return any(folder.glob(".checkpoint.partial*")) or (folder / "checkpoint.safetensors").exists()

    def _kill(self, victim: str, process: subprocess.Popen, stage: str) -> None:
        """Kill, and leave nothing running."""
        from cswin.train.lease import holder

        trainers = self._trainers(process.pid)
        if victim == "trainer" and trainers:
            for pid in trainers:
                os.kill(pid, signal.SIGKILL)
            if process.wait(timeout=120) == 0:
                raise RuntimeError("snakemake took a killed trainer for a finished one")
            return
        if victim == "snakemake":
            process.kill()
            process.wait()
            if not self.report.refused and (holder(self.folder / self.run / stage) or {}).get("pid") in trainers:
                self._try_beside(trainers)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        while self._members(process.pid):
            time.sleep(POLL)
        self._unlock()

    def _try_beside(self, trainers: list[int]) -> None:
        """With a trainer still alive, the same command must be turned away; it is paused, so that it cannot end meanwhile."""
        for pid in trainers:
            os.kill(pid, signal.SIGSTOP)
        self._unlock()
        size = (self.folder / "output.txt").stat().st_size
        second = self.snakemake()
        try:
            failed = second.wait(timeout=600)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(second.pid, signal.SIGKILL)
        if not failed or b"another trainer is at work" not in (self.folder / "output.txt").read_bytes()[size:]:
            self.report.problems.append("a second trainer was not turned away")
        self.report.refused += 1

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
        """Spoil the newest of at least two states."""
        states = sorted((self.folder / self.run / stage / "state").glob("state-*.safetensors"))
        if len(states) < 2:
            return None
        how, data = DAMAGES[sum(kill.damaged is not None for kill in self.report.kills) % len(DAMAGES)], states[-1].read_bytes()
        if how == "a changed byte":
            place = self.chance.randrange(len(data))
            data = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        states[-1].write_bytes(data if how == "a changed byte" else data[: len(data) // 2] if how == "cut off" else b"")
        return how

    def _rows(self, stage: str) -> list[dict]:
        from cswin.train.history import read_history

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

    @property
    def _epoch_steps(self) -> int:
        from cswin.config.resolve import load_settings
        from cswin.data.dataset import Dataset

        settings = load_settings(self.folder / "config/config.yaml")
        images = Dataset.load(self.folder / settings.data.directory / settings.data.name / "dataset.json").images("train")
        return images // settings.optimizer.global_batch

    def _finish(self) -> None:
        if self.snakemake().wait():
            raise RuntimeError(f"the workflow failed by itself; see {self.folder / 'output.txt'}")

    def _compare(self) -> None:
        for stage in self.stages:
            mine, theirs = self.folder / self.run / stage, self.like / self.run / stage
            self.report.problems += [f"{stage}: {text}" for text in compare(mine, theirs)]
            self.report.recovered += len(list(mine.glob("state*/*.damaged")))
            attempts = map(json.loads, (mine / "attempts.jsonl").read_text().splitlines())
            self.report.saving += [row["saving"] for row in attempts if "saving" in row]


def compare(mine: Path, theirs: Path) -> list[str]:
    """Differences between two folders of a stage: tensors of the checkpoints, and what the histories say of steps and epochs."""
    from cswin.checkpoint import load_checkpoint
    from cswin.train.history import read_history

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
    """A row without what depends on speed."""
    return {key: value for key, value in row.items() if key not in ("images_per_s", "wait", "seconds")}


def saves(architecture: str, folder: Path, repeat: int) -> Iterator[str]:
    """What saving a state of an architecture costs: weights, two moments and EMA, and the best weights and EMA."""
    from cswin.model.variants import variant
    from cswin.profile import profile
    from cswin.train.state import State, StateFolder

    numbers = profile(variant(architecture)).parameters
    arrays = {f"part{i}": np.random.default_rng(i).standard_normal(numbers // 8, dtype=np.float32) for i in range(8 * 4)}
    best = {f"best.{name}": array for name, array in list(arrays.items())[:16]}
    copies, waits, states = [], [], StateFolder(folder / architecture, keep=2, say=print)
    for step in range(repeat):
        began = time.monotonic()
        copy = {name: array.copy() for name, array in arrays.items()} | best
        copies.append(time.monotonic() - began)
        states.save(State(step, copy, {}))
        waits.append(time.monotonic() - began - copies[-1])
        states.wait()
    began = time.monotonic()
    states.load()
    figures = states.figures
    yield (
        f"{architecture}: {figures.bytes / 1e6:.0f} MB; copy {1000 * statistics.median(copies):.0f} ms and start "
        f"{1000 * statistics.median(waits):.1f} ms in training's way; on the disk after {figures.seconds / figures.saves:.2f} s in "
        f"the background (slowest {figures.slowest:.2f} s); read and checked in {time.monotonic() - began:.2f} s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    kills = commands.add_parser("kills", help="interrupt a run again and again")
    kills.add_argument("--like", type=Path, required=True, metavar="FOLDER", help="a finished run of the workflow")
    kills.add_argument("--kills", type=int, default=21)
    kills.add_argument("--seed", type=int, default=0)
    cost = commands.add_parser("saves", help="time saving a state")
    cost.add_argument("architecture", nargs="*", default=["cswin_64_24322_small_224_report"])
    cost.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        if args.what == "saves":
            for architecture in args.architecture:
                print(*saves(architecture, Path(folder), args.repeat), sep="\n")
            return 0
        report = Interruptions(args.like, Path(folder, "run"), random.Random(args.seed)).train(args.kills)
        print(*report.lines(), sep="\n")
        return bool(report.problems)


if __name__ == "__main__":
    sys.exit(main())
