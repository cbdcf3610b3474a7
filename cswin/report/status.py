"""Progress of a run, read from its files. Nothing is written, and no lock is taken.

So it works on any machine that can read the files, also while a stage trains on another machine.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cswin.errors import UserError
from cswin.layout import RunLayout, StageLayout
from cswin.report.files import load_json, load_yaml
from cswin.run.attempts import LOST, AttemptSummary, Signs, current, summaries
from cswin.run.history import read_history, read_tail
from cswin.run.lease import Holder, look
from cswin.run.repeat import COMPLETE, REPEAT
from cswin.run.states import PATTERN

TAIL = 512 * 1024  # bytes of a history that are read at first: about 2,500 steps
TAIL_LIMIT = 32 * TAIL  # at most, to find the last validation
CLOCK_TOLERANCE = 2.0  # seconds by which clocks may differ without a message
LEASE_TIMEOUT = 300.0  # seconds; used if runtime.yaml has none


@dataclass
class StageStatus:
    """A stage at one moment. An attribute that is unknown, or has no meaning in this state, is None.

    Attributes:
        name: of the stage.
        state: done, running, stale (the trainer's last heartbeat is older than the lease's time-out), interrupted or waiting.
        detail: for example what it waits for, or why it was interrupted.
        start_epoch, epochs: begin and end on the whole schedule.
        epoch: the current epoch (running), or the best one (done).
        step, first_step, last_step: optimizer steps on the whole schedule; `step` is the last one in the history.
        resume_step: step from which the same command resumes.
        images_per_s: of the last steps in the history.
        seconds_left: to the end of the stage, with validation and saving.
        heartbeat_age: seconds since the trainer's last heartbeat.
        clock_ahead: seconds by which the trainer's clock is ahead of the file system's, if more than 2.
        host, pid, job: of the running or last trainer.
        loss, lr: of the last step.
        validated_epoch, top1_raw, top1_ema: the last validation in per cent (running, interrupted), or the result (done).
        attempts: number of attempts of the current training.
        hours: of these attempts; a killed one counts up to its last sign of life.
    """

    name: str
    state: str = "waiting"
    detail: str = ""
    start_epoch: int | None = None
    epochs: int | None = None
    epoch: int | None = None
    step: int | None = None
    first_step: int | None = None
    last_step: int | None = None
    resume_step: int | None = None
    images_per_s: float | None = None
    seconds_left: float | None = None
    heartbeat_age: float | None = None
    clock_ahead: float | None = None
    host: str | None = None
    pid: int | None = None
    job: str | None = None
    loss: float | None = None
    lr: float | None = None
    validated_epoch: int | None = None
    top1_raw: float | None = None
    top1_ema: float | None = None
    attempts: int = 0
    hours: float = 0.0


@dataclass
class RunStatus:
    """A run at one moment: name, folder, architecture, stages; `seconds_left` for all stages while one is running.

    If its files cannot be read, `problem` says why, and the rest is unknown.
    """

    run: str
    folder: str
    arch: str | None
    time: float
    stages: list[StageStatus]
    seconds_left: float | None = None
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def status_of(folder: Path) -> RunStatus:
    """As `run_status`, at this moment. Damaged files give a `problem` instead of an error, so other runs can still be shown."""
    try:
        return run_status(folder)
    except UserError as error:
        return RunStatus(folder.name, str(folder), None, time.time(), [], problem=str(error).replace(f"{folder}/", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"its files cannot be read ({type(error).__name__}: {error})"
        return RunStatus(folder.name, str(folder), None, time.time(), [], problem=problem)


def run_status(folder: Path, now: float | None = None) -> RunStatus:
    """The state of a run's stages, in their order.

    Args:
        folder: results/<run>.
        now: seconds since 1970 (default: this machine's clock).
    """
    folder, now = Path(folder), time.time() if now is None else now
    layout = RunLayout(folder)
    configs, runtime = _stage_configs(layout.configs), load_yaml(layout.runtime)
    timeout = float(runtime.get("lease_timeout", LEASE_TIMEOUT))
    stages = [_stage_status(layout.stage(name), config, timeout, now) for name, config in configs.items()]
    _explain_waiting(stages, configs)
    first = next(iter(configs.values()), {})
    run = RunStatus(first.get("run", folder.name), str(folder), (first.get("model") or {}).get("arch"), now, stages)
    run.seconds_left = _run_left(stages)
    return run


def _stage_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Resolved configurations by stage, in order. Files of stages that the run no longer has are left out."""
    found = {path.stem: load_yaml(path) for path in folder.glob("*.yaml")}
    wanted = found.get("expectations", {}).get("stages")
    configs = {name: config for name, config in found.items() if "start_epoch" in config}
    if wanted:
        return {name: configs.get(name, {}) for name in wanted}
    return dict(sorted(configs.items(), key=lambda item: item[1]["start_epoch"]))


def _stage_status(files: StageLayout, config: dict[str, Any], timeout: float, now: float) -> StageStatus:
    folder = files.folder
    status = StageStatus(folder.name, start_epoch=config.get("start_epoch"), epochs=config.get("epochs"))
    tried = current(summaries(read_history(files.attempts))) if files.attempts.exists() else []
    last = tried[-1] if tried else None
    holder = look(folder)
    if last:
        _describe_attempts(status, tried)
    _describe_history(status, files.history, last, config, now)
    if holder:
        _describe_holder(status, holder, timeout, now)
    record = load_json(files.record)
    if status.state == "running":
        status.detail = "" if status.step is not None and last and last.from_step is not None else "starting"
    elif record is not None and files.checkpoint.exists():
        _describe_result(status, record, load_json(files.evaluation))
    elif status.state == "waiting" and last:
        _describe_interruption(status, files.state, last)
    if status.state == "stale":
        _describe_saved(status, files.state)
    if status.state != "running":
        status.seconds_left = None
    if last and last.ended is None:
        end = now if status.state == "running" else Signs.read(folder).last_life(last.start)[0]
        status.hours += max(0.0, end - last.started) / 3600
    return status


def _describe_attempts(status: StageStatus, tried: list[AttemptSummary]) -> None:
    last = tried[-1]
    status.attempts = len(tried)
    status.hours = sum(one.hours or 0.0 for one in tried)
    status.host, status.pid, status.job = (last.start.get(key) for key in ("host", "pid", "job"))
    status.first_step, status.last_step = last.first_step, last.last_step


def _describe_history(status: StageStatus, path: Path, last: AttemptSummary | None, config: dict[str, Any], now: float) -> None:
    """Step, speed and the last validation, from the end of the history."""
    if not path.exists():
        return
    size, length = path.stat().st_size, TAIL
    rows = read_tail(path, length)
    while length < min(size, TAIL_LIMIT) and not any(row["kind"] == "epoch" for row in rows):
        length *= 4
        rows = read_tail(path, length)
    steps = [row for row in rows if row["kind"] == "step"]
    validated = next((row for row in reversed(rows) if row["kind"] == "epoch"), None)
    if validated:
        status.validated_epoch = validated["epoch"]
        status.top1_raw, status.top1_ema = validated["raw"]["top1"], validated["ema"]["top1"]
    if not steps:
        return
    end = steps[-1]
    status.step, status.epoch, status.loss, status.lr = end["step"], end["epoch"], end["loss"], end["lr"]
    logged = [row for row in steps if "seconds" in row]
    batch = (config.get("optimizer") or {}).get("global_batch")
    seconds = sum(row["seconds"] for row in logged[-20:])
    if logged and seconds > 0:
        status.images_per_s = sum(row["images_per_s"] * row["seconds"] for row in logged[-20:]) / seconds
    if batch and status.images_per_s and status.last_step is not None:
        per_step = _seconds_per_step(logged, last) or batch / status.images_per_s
        mine = last is not None and end.get("time", 0.0) >= last.started  # logged by this attempt
        since = max(0.0, now - end["time"]) if mine else 0.0
        status.seconds_left = max(0.0, (status.last_step - end["step"]) * per_step - since)


def _seconds_per_step(logged: list[dict[str, Any]], last: AttemptSummary | None) -> float | None:
    """Wall-clock seconds per step in the current attempt, with validation and saving."""
    mine = [row for row in logged if last and row.get("time", 0.0) >= last.started]
    steps = mine[-1]["step"] - mine[0]["step"] if mine else 0
    return (mine[-1]["time"] - mine[0]["time"]) / steps if steps else None


def _describe_holder(status: StageStatus, holder: Holder, timeout: float, now: float) -> None:
    """Running, stale, or (only detectable on this machine) dead."""
    status.host, status.pid, status.job = holder.host, holder.pid, holder.job
    status.heartbeat_age, status.clock_ahead = _age(holder, now)
    if holder.lives is False:
        return
    if status.heartbeat_age <= timeout:
        status.state = "running"
        return
    status.state = "stale"
    status.detail = f"no heartbeat for longer than runtime.lease_timeout, {timeout:.0f} s" + (
        "; its process still exists" if holder.lives else "; the same command may take it over"
    )


def _age(holder: Holder, now: float) -> tuple[float, float | None]:
    """Seconds since the last heartbeat, and by how much the trainer's clock is ahead of the file system's.

    There are two times: the one that the trainer wrote, by its own clock, and the date of the file, often by a server's clock.
    Either clock may be wrong. A time in the future is ignored, and the later of the two counts, so a stage is stale only if both
    times are old.
    """
    ages = [age for age in (now - holder.heartbeat, now - holder.written) if age >= -CLOCK_TOLERANCE]
    ahead = holder.heartbeat - holder.written
    return max(0.0, min(ages, default=0.0)), ahead if abs(ahead) > CLOCK_TOLERANCE else None


def _describe_result(status: StageStatus, record: dict[str, Any], evaluation: dict[str, Any] | None) -> None:
    """The figures of a finished stage: those of its evaluation or, until then, of its validation."""
    figures = evaluation or record["figures"]
    status.state, status.detail = "done", "" if evaluation else "not evaluated yet"
    status.heartbeat_age = status.clock_ahead = None
    status.epoch = status.validated_epoch = record["best_epoch"]
    for which in ("raw", "ema"):
        setattr(status, f"top1_{which}", figures[which]["top1"] if which in figures else None)


def _describe_interruption(status: StageStatus, state: Path, last: AttemptSummary) -> None:
    if (state / REPEAT).exists():
        status.detail = "was complete; it will be trained again from the beginning, as requested"
        return
    if (state / COMPLETE).exists():
        status.detail = "is complete, but its files are missing: the next start writes them again without training"
        return
    status.state, status.detail = "interrupted", last.reason or LOST
    _describe_saved(status, state)


def _describe_saved(status: StageStatus, state: Path) -> None:
    steps = [int(file.stem.removeprefix("state-")) for file in state.glob(PATTERN)]
    status.resume_step = max(steps, default=None)


def _explain_waiting(stages: list[StageStatus], configs: dict[str, dict[str, Any]]) -> None:
    done = {stage.name for stage in stages if stage.state == "done"}
    for stage in stages:
        previous = configs[stage.name].get("previous")
        if stage.state == "waiting" and not stage.detail and previous and previous not in done:
            stage.detail = f"for {previous}"


def _run_left(stages: list[StageStatus]) -> float | None:
    """Seconds to the end of all stages if one is running; the others are estimated at its speed."""
    running = next((s for s in stages if s.state == "running" and s.seconds_left is not None), None)
    if running is None or running.last_step is None or running.step == running.last_step:
        return None
    per_step = running.seconds_left / (running.last_step - running.step)
    per_epoch = running.last_step / running.epochs
    left = running.seconds_left
    for stage in stages:
        if stage.state in ("waiting", "interrupted", "stale") and stage.epochs is not None:
            done = stage.resume_step or stage.start_epoch * per_epoch
            left += max(0.0, stage.epochs * per_epoch - done) * per_step
    return left
