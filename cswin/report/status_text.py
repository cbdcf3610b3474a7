"""The status of runs as text, at most 80 columns wide."""

from __future__ import annotations

from textwrap import wrap

from cswin.progress import duration_text
from cswin.report.status import RunStatus, StageStatus
from cswin.report.tables import text_table

WIDTH = 80
BAR = 24
COLOURS = {"done": "32", "running": "36", "interrupted": "33", "stale": "31", "waiting": "2"}
BLOCKS = ("█", "░")
PLAIN = ("#", ".")


_RUNS = ("run", "stage", "epoch", "images/s", "left", "attempts", "what is wrong")
_NARROWEST = 20  # minimum width of "what is wrong", in characters


def runs_text(runs: list[RunStatus], width: int = WIDTH) -> str:
    """A table of several runs, with one line each if nothing is wrong.

    Args:
        runs: the runs.
        width: characters of the terminal; the last column takes the rest of the line.
    """
    rows = [_run_row(run) for run in runs]
    columns = list(zip(_RUNS, *rows, strict=True))[:-1]
    others = sum(max(len(head) + 2, *map(len, cells)) + 2 for head, *cells in columns)  # tabulate makes a heading 2 wider
    room = max(_NARROWEST, width - others)
    return text_table(_RUNS, [[*row[:-1], "\n".join(wrap(row[-1], room))] for row in rows], style="simple")


def _run_row(run: RunStatus) -> list[str]:
    if not run.stages:
        return [run.run, *[""] * 5, run.problem or "no stage is configured"]
    stage = current_stage(run)
    last = stage.epoch if stage.state != "done" else None
    return [
        run.run,
        "all done" if stage.state == "done" else stage.name,
        "" if last is None else f"{last} of {stage.epochs}",
        f"{stage.images_per_s:,.0f}" if stage.state == "running" and stage.images_per_s else "",
        "" if run.seconds_left is None else duration_text(run.seconds_left),
        str(stage.attempts or ""),
        "; ".join(_wrong(stage)),
    ]


def current_stage(run: RunStatus) -> StageStatus:
    """The stage that is running, has stopped, or comes next; the last one of a finished run."""
    order = ("running", "stale", "interrupted", "waiting", "done")
    first = min(run.stages, key=lambda stage: order.index(stage.state))
    return run.stages[-1] if first.state == "done" else first


def _wrong(stage: StageStatus) -> list[str]:
    found = [f"{stage.state}: {stage.detail}"] if stage.state in ("stale", "interrupted") else []
    if stage.state == "waiting" and stage.detail and not stage.detail.startswith("for "):
        found.append(stage.detail)
    if stage.state == "running" and stage.step is not None and stage.loss is None:
        found.append("the last loss is not finite")
    return found + ([_clock(stage)] if stage.clock_ahead else [])


def _clock(stage: StageStatus) -> str:
    direction = "ahead" if stage.clock_ahead > 0 else "behind"
    return f"its clock is {duration_text(abs(stage.clock_ahead))} {direction} of the files' dates"


def status_text(run: RunStatus, colour: bool = False, blocks: tuple[str, str] = BLOCKS) -> str:
    """Lines about a run: one with its name, and one to three for each stage.

    Args:
        run: the run.
        colour: with ANSI colours, for a terminal.
        blocks: characters of a bar, done and not done.
    """
    head = f"{run.run}: {run.arch}" if run.arch else run.run
    if run.seconds_left is not None:
        head += f", about {duration_text(run.seconds_left)} left in all"
    width = max((len(stage.name) for stage in run.stages), default=0)
    lines = [head, "", *([f"  {run.problem}"] if run.problem else [])]
    for stage in run.stages:
        lines += _stage_lines(stage, width, colour, blocks)
    return "\n".join(lines)


def _stage_lines(stage: StageStatus, width: int, colour: bool, blocks: tuple[str, str]) -> list[str]:
    state = f"{stage.state:11}"
    if colour:
        state = f"\x1b[{COLOURS[stage.state]}m{state}\x1b[0m"
    first = f"  {stage.name:{width}}  {state}  {_bar(stage, blocks)}  {_epochs(stage)}"
    indent = " " * (width + 4)
    return [first.rstrip(), *_wrapped(_facts(stage), indent)]


def _bar(stage: StageStatus, blocks: tuple[str, str]) -> str:
    share = _share(stage)
    filled = int(BAR * share)
    return f"{blocks[0] * filled}{blocks[1] * (BAR - filled)} {int(100 * share):3d} %"


def _share(stage: StageStatus) -> float:
    """The completed share of the stage, 0 to 1."""
    if stage.state == "done":
        return 1.0
    step = stage.step if stage.state == "running" else stage.resume_step
    if step is None or not stage.last_step:
        return 0.0
    first = stage.first_step or 0
    return min(1.0, max(0.0, (step - first) / max(1, stage.last_step - first)))


def _epochs(stage: StageStatus) -> str:
    if stage.epochs is None:
        return ""
    span = f"epochs {stage.start_epoch}-{stage.epochs}"
    return f"{span}, in {stage.epoch}" if stage.state == "running" and stage.epoch is not None else span


def _facts(stage: StageStatus) -> list[str]:
    facts = [stage.detail] if stage.detail else []
    if stage.state == "running" and stage.step is not None:
        facts.append(f"step {stage.step:,}" + (f" of {stage.last_step:,}" if stage.last_step else ""))
        if stage.images_per_s:
            facts.append(f"{stage.images_per_s:,.0f} images/s")
        if stage.seconds_left is not None:
            facts.append(f"{duration_text(stage.seconds_left)} left")
        if stage.loss is not None:
            facts.append(f"loss {stage.loss:.4f}")
    if stage.state in ("interrupted", "stale"):
        facts.append("nothing is saved" if stage.resume_step is None else f"resumes from step {stage.resume_step:,}")
    if stage.state != "waiting" and stage.validated_epoch is not None:
        which = "best epoch" if stage.state == "done" else "epoch"
        pairs = (("raw", stage.top1_raw), ("EMA", stage.top1_ema))
        values = ", ".join(f"{value:.2f} {name}" for name, value in pairs if value is not None)
        facts.append(f"top-1 {values} ({which} {stage.validated_epoch})")
    if stage.state in ("running", "stale"):
        facts.append(f"heartbeat {duration_text(stage.heartbeat_age)} ago")
        if stage.clock_ahead:
            facts.append(_clock(stage))
    if stage.host and stage.state not in ("done", "waiting"):
        facts.append(f"host {stage.host}, " + (f"job {stage.job}" if stage.job else f"process {stage.pid}"))
    if stage.attempts:
        attempts = "1 attempt" if stage.attempts == 1 else f"{stage.attempts} attempts"
        facts.append(f"{attempts}, {duration_text(3600 * stage.hours)}")
    return facts


def _wrapped(facts: list[str], indent: str) -> list[str]:
    """The facts in as few lines as possible; a fact that is longer than a line is wrapped."""
    lines: list[str] = []
    line = ""
    for fact in facts:
        for part in _pieces(fact, WIDTH - len(indent) - 1):
            if line and len(indent) + len(line) + 2 + len(part) >= WIDTH:
                lines.append(indent + line)
                line = ""
            line = f"{line}; {part}" if line else part
    return [*lines, indent + line] if line else lines


def _pieces(text: str, width: int) -> list[str]:
    """The text as one piece if it fits, otherwise wrapped."""
    return [text] if len(text) <= width else wrap(text, width)
