"""A stage's curves as an event file for TensorBoard. The file depends on the history only.

When training resumes from a saved state, the history is cut to that state and the whole file is written again from it, so no
step appears twice. `tensorboard --logdir results/<run>` shows all stages with a common count of steps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import fmean

import mindspore  # noqa: F401 (first: it chooses how protobuf works, and cannot be imported after another has chosen)
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

PREFIX = "events"  # TensorBoard looks for *tfevents*; the writer names its files events.out.tfevents.<time>.<host>
VALIDATION = ("top1", "top5", "loss")


def scalars(rows: Iterable[dict]) -> Iterator[tuple[int, float, dict[str, float]]]:
    """The points of the curves: (step, time in seconds since 1970, value by tag).

    One point per read of the device, that is every `runtime.log_every` steps: mean of the finite values of loss and gradient norm,
    number of skipped steps, learning rate and loss scale of the last step, throughput, and the share of time in which the device
    waited for data. One point per validation.
    """
    steps = []
    for row in rows:
        if row["kind"] == "step":
            steps.append(row)
            if "images_per_s" in row:
                yield row["step"], row.get("time", 0.0), _training(steps)
                steps = []
        elif row["kind"] == "epoch":
            values = {f"{row['on']}/{name}_{which}": row[which][name] for which in ("raw", "ema") for name in VALIDATION}
            yield row["step"], row.get("time", 0.0), values


def _training(steps: list[dict]) -> dict[str, float]:
    last, values = steps[-1], {}
    for tag, key in (("loss", "loss"), ("gradient_norm", "grad_norm")):
        finite = [row[key] for row in steps if row[key] is not None]
        if finite:
            values[f"train/{tag}"] = fmean(finite)
    values |= {
        "train/learning_rate": last["lr"],
        "train/loss_scale": last["loss_scale"],
        "train/skipped_steps": sum(row["skipped"] for row in steps),
        "speed/images_per_s": last["images_per_s"],
        "speed/data_wait": last["wait"],
    }
    return {tag: value for tag, value in values.items() if value is not None}  # None: not finite


class EventFile:
    """A new event file in a folder. Older ones are removed, except the newest of them, which is emptied.

    A failed write is reported once and does not end training: the next start writes the file again from the history.

    Args:
        folder: the stage's folder.
        first_step: first step of the stage; a running TensorBoard discards what it has read of this and later steps.
        say: receives messages for the user's log.
    """

    def __init__(self, folder: Path, first_step: int, say: Callable[[str], None]):
        self.folder, self.say = Path(folder), say
        self._writer = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            *older, newest = sorted(self.folder.glob(f"{PREFIX}.out.tfevents.*")) or [None]
            for old in older:
                old.unlink()
            if newest:  # emptied, not removed: a running TensorBoard that misses its file never opens the next one
                os.truncate(newest, 0)
            self._writer = EventsWriter(str(self.folder / PREFIX))
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=time.time(), step=first_step, session_log=start))
        except OSError as error:
            self._give_up(error)

    def add(self, rows: Iterable[dict]) -> None:
        """Write the points of these rows of the history."""
        if self._writer is None:
            return
        try:
            for step, seconds, values in scalars(rows):
                event = Event(wall_time=seconds, step=step)
                for tag, value in values.items():
                    event.summary.value.add(tag=tag, simple_value=value)
                self._writer.write_event(event)
            self._writer.flush()  # a trainer that has lost its lease must not write buffered points later
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Flush and close the file."""
        if self._writer is None:
            return
        try:
            self._writer.close()
        except OSError as error:
            self._give_up(error)
        self._writer = None

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        self.say(
            f"{self.folder}: the event file for TensorBoard cannot be written ({error.strerror or error}); training continues "
            "without it, and the next start writes it from the history"
        )
