"""Images per second and time spent waiting for data, over the hours of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from cswin.errors import UserError
from cswin.report.pictures.style import EMA, FAINT, INK, RAW, mark_stages, picture
from cswin.report.run import StageResult

_SPANS = 200  # maximum number of points in a smoothed line


def draw_throughput(stages: list[StageResult], path: Path, *, title: str) -> None:
    """Write the picture.

    Args:
        stages: with the history of their steps.
        path: PNG to write.
        title: above the picture.

    Raises:
        UserError: if nothing has been measured yet.
    """
    frame = throughput_series(stages)
    if frame.empty:
        raise UserError("no stage has measured its speed yet (each runtime.log_every steps); there is nothing to draw")
    unit, scale = ("hours", 1) if frame.hours.iloc[-1] >= 2 else ("minutes", 60)
    frame = frame.assign(time=frame.hours * scale, begin=(frame.hours - frame.seconds / 3600) * scale)
    with picture(path, 5.6, title, _summary(frame, stages)) as figure:
        speed, wait = figure.subplots(2, 1, sharex=True, height_ratios=(1.2, 1))
        for _, measured in frame.groupby("stage", sort=False):
            _draw(speed, measured, "images_per_s", 1, EMA)
            _draw(wait, measured, "wait", 100, RAW)
        speed.set(ylabel="images / s", ylim=(0, 1.08 * frame.images_per_s.max()))
        wait.set(ylabel="waiting for data, % of time", ylim=(0, max(5.0, 108 * frame.wait.max())))
        wait.set_xlabel(f"{unit} of training, all attempts; validation and saving are not counted")
        for axes in (speed, wait):
            _mark_attempts(axes, frame, [hours * scale for hours in resumptions(stages, frame)])
            axes.grid(axis="y")
            mark_stages(axes, _spans(frame), names=axes is speed)
        wait.legend(loc="lower right", bbox_to_anchor=(1.0, 1.01), ncols=2, borderaxespad=0)


def throughput_series(stages: list[StageResult]) -> pd.DataFrame:
    """The measurements in order, one row each (every runtime.log_every steps).

    Returns:
        Columns stage, step (the last of the measurement, on the whole schedule), seconds (of the measurement), images_per_s, wait
        (share of the time, 0 to 1), hours (of training up to its end, over all stages and attempts), first (whether it is an
        attempt's first, which compiles the network).
    """
    parts = [_measurements(stage) for stage in stages]
    frame = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
    return frame.assign(hours=frame.seconds.cumsum() / 3600)


def _measurements(stage: StageResult) -> pd.DataFrame:
    frame = stage.history.steps.dropna(subset="seconds")[["step", "seconds", "images_per_s", "wait"]].reset_index(drop=True)
    begun = [row["step"] for row in stage.attempts if row["event"] in ("begin", "resume")]
    after = [int(frame.step.searchsorted(step, side="right")) for step in begun]  # the first measurement that ends later
    return frame.assign(stage=stage.name, first=frame.index.isin(after))


def weighted_mean(frame: pd.DataFrame, key: str) -> float:
    """Mean over time: each measurement weighted by its duration."""
    return float((frame[key] * frame.seconds).sum() / frame.seconds.sum())


def smoothed(frame: pd.DataFrame, key: str, spans: int) -> pd.DataFrame:
    """Means over time of at most `spans` runs of consecutive measurements: time (middle) and the value."""
    runs = np.array_split(np.arange(len(frame)), min(spans, len(frame)))
    first, last = [run[0] for run in runs], [run[-1] for run in runs]
    totals, seconds = (np.add.reduceat(values.to_numpy(), first) for values in (frame[key] * frame.seconds, frame.seconds))
    time = (frame.begin.to_numpy()[first] + frame.time.to_numpy()[last]) / 2
    return pd.DataFrame({"time": time, key: totals / seconds})


def resumptions(stages: list[StageResult], frame: pd.DataFrame) -> list[float]:
    """Hours of training at which an interrupted stage resumed."""
    steps = [row["step"] for stage in stages for row in stage.attempts if row["event"] == "resume"]
    return [float(frame.hours[frame.step <= step].max()) if (frame.step <= step).any() else 0.0 for step in steps]


def _draw(axes: Axes, frame: pd.DataFrame, key: str, factor: float, colour: str) -> None:
    """One stage: measurements as points, their mean as a line; measurements with compilation are left out of the line."""
    axes.plot(
        (frame.begin + frame.time) / 2, factor * frame[key], ".", color=colour, alpha=0.5, markersize=4, markeredgewidth=0
    )
    steady = frame[~frame["first"]]
    if len(steady):
        line = smoothed(steady, key, min(_SPANS, max(2, len(steady) // 5)))
        axes.plot(line.time, factor * line[key], color=colour)


def _mark_attempts(axes: Axes, frame: pd.DataFrame, resumed: list[float]) -> None:
    """Grey where the network was compiled, triangles where training was resumed."""
    for number, row in enumerate(frame[frame["first"]].itertuples()):
        label = None if number else "first measurement of an attempt: compilation"
        axes.axvspan(row.begin, row.time, color=FAINT, alpha=0.6, linewidth=0, zorder=0, label=label)
    if resumed:
        axes.plot(resumed, [0] * len(resumed), marker="^", color=INK, linestyle="", markersize=7, clip_on=False, zorder=5,
                  label="resumed")  # fmt: skip


def _summary(frame: pd.DataFrame, stages: list[StageResult]) -> str:
    devices = sorted({row["devices"] for stage in stages for row in stage.attempts if row.get("devices")})
    on = f" on {' or '.join(map(str, devices))} device{'' if devices == [1] else 's'}" if devices else ""
    steady = frame[~frame["first"]]
    without = f" ({weighted_mean(steady, 'images_per_s'):,.0f} without compilation)" if len(steady) else ""
    return (
        f"{weighted_mean(frame, 'images_per_s'):,.0f} images / s{on}{without}; "
        f"{100 * weighted_mean(frame, 'wait'):.1f} % of the time went into waiting for data"
    )


def _spans(frame: pd.DataFrame) -> list[tuple[str, float, float]]:
    ends = frame.groupby("stage", sort=False).time.max()
    return [(name, first, last) for name, first, last in zip(ends.index, [0, *ends.iloc[:-1]], ends, strict=True)]
