"""Hours of training and waiting: against sums made by hand from the clock times of invented attempts."""

import pandas as pd
import pytest

from cswin.report.effort import measure_effort

IDENTITY = {"config": {"stage": "stage1"}}
CLEAN, DIRTY = {"commit": "a" * 40, "dirty": False}, {"commit": "a" * 40, "dirty": True}


def rows(name, *events, identity=IDENTITY, devices=8, git=CLEAN):
    """Rows of one attempt; an event is (event, clock time, further values)."""
    facts = {"identity": identity, "devices": devices, "git": git}
    return [
        {"attempt": name, "event": event, "time": f"2026-03-01T{clock}+00:00", **(facts if event == "start" else {}), **values}
        for event, clock, values in events
    ]


def steps(*rows):
    """(step, seconds, wait) of each as columns; None: the device was not read after it."""
    return pd.DataFrame(rows, columns=["step", "seconds", "wait"]).astype(float)


COMPLETE = {"reason": "complete", "step": 30}


def test_stopped_killed_and_finished():
    attempts = [
        *rows("a", ("start", "00:00:00", {}), ("begin", "00:01:00", {"step": 0}), ("end", "02:00:00", {"reason": "SIGTERM"})),
        *rows("b", ("start", "05:00:00", {}), ("resume", "05:01:00", {"step": 10})),  # killed
        *rows("b", ("lost", "06:30:00", {})),
        *rows("c", ("start", "07:00:00", {}), ("resume", "07:01:00", {"step": 20}), ("end", "08:00:00", COMPLETE), devices=4),
    ]
    logged = steps((10, 3600.0, 0.5), (11, None, None), (20, 1800.0, 0.25), (30, 1800.0, 0.0))
    effort = measure_effort(attempts, logged, global_batch=900)
    assert effort.train_hours == pytest.approx(2 + 1.5 + 1)
    assert effort.between_hours == pytest.approx(3 + 0.5)
    assert effort.data_wait_hours == pytest.approx(0.5 + 0.125)
    assert effort.images_per_s == pytest.approx(4 * 900 / 7200)
    assert (effort.attempts, effort.resumes, effort.unended, effort.devices) == (3, 2, 0, 4)


def test_files_that_were_written_again_later_cost_nothing():
    """A complete stage on another machine: its job goes on from the last step, and has nothing to train."""
    trained = rows("a", ("start", "00:00:00", {}), ("begin", "00:01:00", {"step": 0}), ("end", "02:00:00", COMPLETE))
    again = rows("b", ("start", "09:00:00", {}), ("resume", "09:01:00", {"step": 30}), ("end", "09:02:00", COMPLETE), devices=1)
    logged = steps((10, 3600.0, 0.5))
    assert measure_effort([*trained, *again], logged, 1) == measure_effort(trained, logged, 1)


def test_without_a_recorded_end_the_steps_that_count_are_the_time():
    attempts = [
        *rows("a", ("start", "00:00:00", {}), ("begin", "00:06:00", {"step": 0})),
        *rows("b", ("start", "01:00:00", {})),  # killed before it began
        *rows("c", ("start", "02:00:00", {}), ("resume", "02:06:00", {"step": 10}), ("end", "03:00:00", COMPLETE)),
    ]
    logged = steps((5, 360.0, 0.0), (10, 720.0, 0.0), (20, 1800.0, 0.0))  # until step 10 of the first attempt
    effort = measure_effort(attempts, logged, global_batch=1)
    assert effort.unended == 2
    assert effort.train_hours == pytest.approx((6 + 6 + 12) / 60 + 0 + 1)
    assert effort.between_hours == pytest.approx((60 - 24) / 60 + 1)


def test_a_training_that_runs_counts_up_to_its_last_step():
    attempts = rows("a", ("start", "00:00:00", {}), ("begin", "00:30:00", {"step": 0}))
    effort = measure_effort(attempts, steps((5, 1800.0, 0.0)), global_batch=1)
    assert (effort.train_hours, effort.unended) == (pytest.approx(1.0), 1)


FIRST = rows("a", ("start", "00:00:00", {}), ("begin", "00:01:00", {"step": 0}), ("end", "01:00:00", COMPLETE))
RESUMED = (("start", "02:00:00", {}), ("resume", "02:01:00", {"step": 30}), ("end", "02:30:00", COMPLETE))
ANEW = (("start", "02:00:00", {}), ("begin", "02:01:00", {"step": 0}), ("end", "02:30:00", COMPLETE))


@pytest.mark.parametrize(
    ("second", "attempts", "hours"),
    [
        (rows("b", *RESUMED), 1, 1.0),  # complete, and its files were written again
        (rows("b", *ANEW), 1, 0.5),  # snakemake --forcerun train_stage1
        (rows("b", *ANEW, identity={"config": {"stage": "other"}}), 1, 0.5),  # another configuration
    ],
)
def test_only_the_last_training_counts(second, attempts, hours):
    effort = measure_effort(FIRST + second, steps(), global_batch=1)
    assert (effort.attempts, effort.train_hours) == (attempts, pytest.approx(hours))


def test_a_changed_configuration_begins_anew_although_nothing_was_complete():
    first = rows("a", ("start", "00:00:00", {}), ("begin", "00:01:00", {"step": 0}), ("end", "01:00:00", {"reason": "SIGTERM"}))
    assert measure_effort(first + rows("b", *ANEW), steps(), 1).attempts == 2  # stopped before a state was saved
    assert measure_effort(first + rows("b", *ANEW, identity={"config": {"stage": "other"}}), steps(), 1).attempts == 1


def test_commits_are_named_once():
    stopped = (*RESUMED[:2], ("end", "02:30:00", {"reason": "SIGTERM"}))
    attempts = FIRST[:2] + rows("b", *stopped, git=DIRTY) + rows("c", *stopped, git=None) + rows("d", *RESUMED, git=DIRTY)
    assert measure_effort(attempts, steps(), 1).commits == ("a" * 40, "a" * 40 + "-dirty", "unknown")


def test_nothing_yet():
    effort = measure_effort([], steps(), 1)
    assert (effort.attempts, effort.train_hours, effort.images_per_s, effort.devices) == (0, 0, None, None)
