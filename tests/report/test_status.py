"""Status from the files alone: of invented runs, so that every figure is known."""

import json
import re

import numpy as np
import pytest
from invented_run import LEASE, Invented

from cswin.cli import main
from cswin.errors import UserError
from cswin.report.files import find_runs
from cswin.run.history import read_columns, read_history, read_tail


@pytest.mark.parametrize(
    ("heartbeat", "written", "state", "age", "ahead"),
    [
        (-5, -5, "running", 5, None),
        (-119, -119, "running", 119, None),
        (-121, -121, "stale", 121, None),
        (-605, -5, "running", 5, -600),  # the trainer's clock is behind
        (595, -5, "running", 5, 600),  # ahead
        (-5, -605, "running", 5, 600),  # the file system's clock is behind
        (-5, 595, "running", 5, -600),  # ahead
        (-1000, 400, "stale", 1000, -1400),  # a sign of life in the future is none
        (-700, -400, "stale", 400, -300),
    ],
)
def test_heartbeat_of_another_host_with_clocks_that_differ(tmp_path, heartbeat, written, state, age, ahead):
    run = Invented(tmp_path)
    run.lease(heartbeat, written)
    stage = run.status().stages[0]
    assert (stage.state, stage.host, stage.job) == (state, "node7", "4711")
    assert stage.heartbeat_age == pytest.approx(age, abs=0.01)
    assert stage.clock_ahead == (None if ahead is None else pytest.approx(ahead, abs=0.01))
    assert stage.resume_step == (30 if state == "stale" else None)


def test_speed_and_time_left(tmp_path):
    run = Invented(tmp_path)
    run.lease(-5, -5)
    status = run.status()
    stage = status.stages[0]
    assert (stage.step, stage.epoch, stage.images_per_s) == (40, 3, pytest.approx(25.0))
    assert stage.seconds_left == pytest.approx(60 * 10 - 20, abs=0.1)  # 60 steps of 10 s, the last one 20 s ago
    per_step = stage.seconds_left / 60
    assert status.seconds_left == pytest.approx(stage.seconds_left + 100 * per_step)
    assert (stage.validated_epoch, stage.top1_raw) == (3, 40.0)


def test_time_left_after_a_pause_does_not_count_the_pause(tmp_path):
    run = Invented(tmp_path)
    begun = {"event": "resume", "time": run.clock(-8), "step": 40, "first_step": 0, "last_step": 100}
    start = {"event": "start", "time": run.clock(-10), "host": "node7", "pid": 6, "job": None}
    run.write("attempts.jsonl", [{"attempt": "b", **row} for row in (start, begun)], "a")
    run.lease(-5, -5)
    assert run.status().stages[0].seconds_left == pytest.approx(60 * 100 / 25)  # the attempt has logged nothing of its own yet


def test_without_a_lease_it_is_interrupted_and_says_why(tmp_path):
    run = Invented(tmp_path)
    assert (run.status().stages[0].state, run.status().stages[0].resume_step) == ("interrupted", 30)
    run.write(
        "attempts.jsonl",
        [{"attempt": "a", "event": "end", "time": run.clock(-600), "reason": "asked to stop", "step": 30}],
        "a",
    )
    stage = run.status().stages[0]
    assert (stage.state, stage.detail) == ("interrupted", "asked to stop")
    assert stage.hours == pytest.approx(300 / 3600)


def test_only_the_end_of_a_long_history_is_read(tmp_path):
    run = Invented(tmp_path, steps=20)
    history = run.stage / "history.jsonl"
    end = history.read_bytes().split(b"\n", 1)[1]
    filler = json.dumps({"kind": "step", "step": 0, "epoch": 0, "loss": 0.0, "lr": 0.0}).encode() + b"\n"
    with history.open("wb") as file:
        file.write(b"this is no JSON\n" * 1000)  # whoever reads from the beginning fails
        file.write(filler * 40_000)  # 2.4 MB
        file.write(end)
        file.write(b'{"kind": "step", "step": 21, "ep')  # being written
    stage = run.status().stages[0]
    assert (stage.step, stage.validated_epoch) == (20, 1)
    with history.open("wb") as file:  # the last validation lies further back than one reads at first
        file.write(b"this is no JSON\n" * 1000)
        file.write(filler * 40_000)
        file.write(end)
        file.write(filler.replace(b'"step": 0', b'"step": 9') * 20_000)
    stage = run.status().stages[0]
    assert (stage.step, stage.validated_epoch) == (9, 1)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 16, 17, 1000])
def test_tail_holds_the_whole_rows_of_the_last_bytes(tmp_path, size):
    file = tmp_path / "rows"
    lines = [json.dumps({"a": i}) + "\n" for i in range(10)]  # 9 bytes each
    file.write_text("".join(lines) + '{"a"')
    inside = [i for i in range(10) if 9 * i >= 94 - size]
    assert read_tail(file, size) == [{"a": i} for i in inside]


@pytest.mark.parametrize("block", [1, 150, 1 << 22])
def test_columns_are_those_of_the_rows(tmp_path, monkeypatch, block):
    run = Invented(tmp_path)
    path = run.stage / "history.jsonl"
    run.write("history.jsonl", [{"kind": "step", "step": 41, "epoch": 4, "loss": None, "lr": 0.2}], "a")
    rows = read_history(path)
    with path.open("a") as file:
        file.write('{"kind": "step", "st')
    monkeypatch.setattr("cswin.run.history.BLOCK", block)
    columns, others = read_columns(path)
    assert others == [row for row in rows if row["kind"] != "step"] and len(others) == 5
    steps = [row for row in rows if row["kind"] == "step"]
    for name, values in columns.items():
        expected = [np.nan if row.get(name) is None else row[name] for row in steps]
        np.testing.assert_array_equal(values, expected)
    assert len(steps) == 41 and np.isnan(columns["loss"][-1]) and np.isnan(columns["wait"]).all()


def test_text_fits_80_columns(tmp_path, capsys):
    run = Invented(tmp_path)
    results = str(run.run.parent)
    run.lease(-1000, -700)
    seen = []
    for change in ("stale", "running", "interrupted", "failed"):
        if change == "running":
            run.lease(-5, -5)
        elif change == "interrupted":
            (run.stage / LEASE).unlink()
        elif change == "failed":
            reason = "UserError: " + "the loss or its gradient was not finite for 20 steps in a row " * 4
            run.write(
                "attempts.jsonl", [{"attempt": "a", "event": "end", "time": run.clock(0), "reason": reason, "step": 3}], "a"
            )
        assert main(["status", "--results", results]) == 0
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 80, text
        seen.append(text)
    assert "resumes from step 30" in seen[0] and "its clock is 5m00s behind" in seen[0] and "job 4711" in seen[0]
    assert "step 40 of 100" in seen[1] and "25 images/s" in seen[1] and "heartbeat" in seen[1]
    assert "two  waiting" in seen[2] and "for one" in seen[2]


def test_several_runs_are_a_table(tmp_path, capsys):
    """One line per run: running, interrupted with a long reason, finished, damaged."""
    running, stopped, done, damaged = (Invented(tmp_path / name) for name in ("a", "b", "c", "d"))
    results = tmp_path / "results"
    running.lease(-5, -605)
    reason = "UserError: " + "the loss or its gradient was not finite for 20 steps in a row " * 2
    stopped.write(
        "attempts.jsonl", [{"attempt": "a", "event": "end", "time": stopped.clock(0), "reason": reason, "step": 3}], "a"
    )
    for name in ("one", "two"):
        (done.run / name).mkdir(exist_ok=True)
        (done.run / name / "checkpoint.safetensors").touch()
        figures = {which: {"top1": 81.5} for which in ("raw", "ema")}
        (done.run / name / "record.json").write_text(json.dumps({"best_epoch": 7, "figures": figures}))
    (damaged.stage / "attempts.jsonl").write_text("no JSON\n")
    for run, name in ((running, "first"), (stopped, "second"), (done, "third"), (damaged, "worst")):
        results.mkdir(exist_ok=True)
        run.run.rename(results / name)
        for file in (results / name / "config").glob("[ot]*.yaml"):
            file.write_text(file.read_text().replace("run: far", f"run: {name}"))
    assert main(["status", "--results", str(results)]) == 0
    lines = capsys.readouterr().out.splitlines()
    head, rule, *rows = lines
    starts = [match.start() for match in re.finditer("-+", rule)]
    cells = [[row[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for row in rows]
    assert [head[a:].split("  ")[0] for a in starts] == [
        "run",
        "stage",
        "epoch",
        "images/s",
        "left",
        "attempts",
        "what is wrong",
    ]
    by_run = {row[0]: row for row in cells if row[0]}
    assert by_run["first"][1:4] == ["one", "3 of 10", "25"] and by_run["first"][4].endswith("s") and by_run["first"][5] == "1"
    assert by_run["second"][1:6] == ["one", "3 of 10", "", "", "1"] and by_run["second"][6].startswith("interrupted:")
    assert by_run["third"][1:] == ["all done", "", "", "", "", ""]
    assert by_run["worst"][1:6] == [""] * 5 and by_run["worst"][6].startswith("one/attempts.jsonl:")
    wrong = " ".join(row[6] for row in cells)
    assert "its clock is 10m00s ahead" in wrong and reason.strip() in wrong
    assert max(map(len, lines)) <= 80, lines
    assert main(["status", "--results", str(results), "--json"]) == 0
    told = {run["run"]: run for run in json.loads(capsys.readouterr().out)["runs"]}
    assert "line 1 is damaged" in told["worst"]["problem"] and told["first"]["problem"] == ""


def test_command_says_what_the_function_says_and_writes_nothing(tmp_path, capsys):
    run = Invented(tmp_path)
    run.lease(-5, -5)
    tree = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(["status", "far", "--results", str(run.run.parent), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["runs"]
    assert [(r["run"], [s["state"] for s in r["stages"]]) for r in told] == [("far", ["running", "waiting"])]
    assert told[0]["stages"][0]["step"] == 40 and told[0]["arch"] == "cswin_64_24322_small_224_report"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == tree


def test_runs_are_found_by_name_and_by_path(tmp_path):
    run = Invented(tmp_path)
    results = run.run.parent
    assert find_runs(results, []) == find_runs(results, ["far"]) == find_runs(tmp_path, [str(run.run)]) == [run.run]
    with pytest.raises(UserError, match="near: no such run.*there: far"):
        find_runs(results, ["near"])
    with pytest.raises(UserError, match="contains no run"):
        find_runs(tmp_path / "nowhere", [])


def test_watching_ends_when_all_is_done(tmp_path, capsys, monkeypatch):
    run = Invented(tmp_path)
    run.lease(-5, -5)
    figures = {"raw": {"top1": 81.5}, "ema": {"top1": 82.5}}

    def finish(seconds):
        (run.stage / LEASE).unlink(missing_ok=True)
        for name in ("one", "two"):
            (run.run / name).mkdir(exist_ok=True)
            (run.run / name / "checkpoint.safetensors").touch()
            (run.run / name / "record.json").write_text(json.dumps({"best_epoch": 7, "figures": figures}))
        (run.stage / "evaluation.json").write_text(json.dumps({"raw": {"top1": 81.0}, "ema": {"top1": 82.0}}))

    monkeypatch.setattr("time.sleep", finish)
    assert main(["status", "--results", str(run.run.parent), "--watch", "3", "--json"]) == 0
    looks = [json.loads(line)["runs"][0]["stages"] for line in capsys.readouterr().out.splitlines()]
    assert [[stage["state"] for stage in look] for look in looks] == [["running", "waiting"], ["done", "done"]]
    assert [(s["epoch"], s["top1_ema"], s["detail"]) for s in looks[1]] == [(7, 82.0, ""), (7, 82.5, "not evaluated yet")]
