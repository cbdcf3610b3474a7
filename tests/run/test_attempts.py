"""What attempts.jsonl says of attempts that were killed, and of trainings that were repeated."""

import json
import os
import shutil
import time
from datetime import datetime

import pytest
from invented_run import LEASE, Invented

from cswin.run.attempts import Attempt, Signs, current, summaries
from cswin.run.history import read_history


def test_lost_attempts_get_the_end_that_the_signs_give(tmp_path):
    run = Invented(tmp_path)
    attempts = run.stage / "attempts.jsonl"

    def lost(signs: Signs) -> dict:
        copy = run.stage / "copy.jsonl"
        shutil.copy(attempts, copy)
        Attempt(copy, {}, signs)
        return next(row for row in read_history(copy) if row["event"] == "lost")

    def seconds(row: dict) -> float:
        return datetime.fromisoformat(row["time"]).timestamp() - run.now

    run.lease(-300, -300)
    os.utime(run.stage / "history.jsonl", (run.now - 400, run.now - 400))
    row = lost(Signs.read(run.stage))
    assert (row["attempt"], row["sign"]) == ("a", "heartbeat") and seconds(row) == pytest.approx(-300, abs=1.1)
    (run.stage / LEASE).write_text(json.dumps({"host": "other", "pid": 5, "heartbeat": run.now}))
    row = lost(Signs.read(run.stage))  # somebody else's lease says nothing of this attempt
    assert row["sign"] == "history" and seconds(row) == pytest.approx(-400, abs=1.1)
    row = lost(Signs(None, None))
    assert row["sign"] == "start" and seconds(row) == pytest.approx(-900, abs=1.1)
    row = lost(Signs(None, run.now + 1000))  # a clock that is wrong cannot put the end after the next start
    assert seconds(row) <= time.time() - run.now


def test_a_row_that_was_cut_off_is_not_continued(tmp_path):
    run = Invented(tmp_path)
    attempts = run.stage / "attempts.jsonl"
    with attempts.open("a") as file:
        file.write('{"attempt": "a", "event": "e')
    Attempt(attempts, {}, Signs(None, None)).end("complete", 5)
    assert [row["event"] for row in map(json.loads, attempts.open())] == ["start", "begin", "lost", "start", "end"]


def test_attempts_of_an_earlier_training_do_not_count():
    def attempt(name, identity, *events):
        rows = [{"attempt": name, "event": "start", "time": "2026-01-01T00:00:00+00:00", "identity": identity}]
        return rows + [{"attempt": name, "time": "2026-01-01T01:00:00+00:00", **event} for event in events]

    complete = {"event": "end", "reason": "complete", "step": 9}
    rows = [
        *attempt("a", 1, {"event": "begin", "step": 0}, complete),
        *attempt("b", 1, {"event": "begin", "step": 0}, {"event": "lost", "sign": "history"}),
        *attempt("c", 1, {"event": "resume", "step": 4}, complete),
    ]
    assert [one.start["attempt"] for one in current(summaries(rows))] == ["b", "c"]
    assert sum(one.hours for one in current(summaries(rows))) == pytest.approx(2)
