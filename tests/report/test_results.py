"""The table of a run that was really made: every figure recomputed from the files with pandas and SciPy, without our code."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from cswin.cli import main
from cswin.report.columns import COLUMNS, reference_text
from cswin.report.headline import headline, outcome
from cswin.report.markdown import markdown_table

SETS = ("raw", "ema")
STAGES = ("stage1", "stage2", "stage3")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(finished_run) -> Path:
    return finished_run.path / "results"


@pytest.fixture(scope="module")
def table(results) -> pd.DataFrame:
    return pd.read_csv(results / "final_acc.csv").set_index("stage")


@pytest.fixture(scope="module")
def frames(results) -> dict[str, pd.DataFrame]:
    """One row per image: position, label, and for each set of weights right1, right5, first, loss."""
    found = {}
    for stage in STAGES:
        saved = np.load(results / f"digits/{stage}/predictions.npz")
        frame = pd.DataFrame({"position": saved["positions"], "label": saved["labels"]})
        for which in SETS:
            top5 = pd.DataFrame(saved[f"{which}_top5"])
            hits = top5.eq(frame.label, axis=0)
            frame[f"right1_{which}"], frame[f"right5_{which}"] = hits[0], hits.any(axis=1)
            frame[f"first_{which}"], frame[f"loss_{which}"] = top5[0], saved[f"{which}_losses"]
        found[stage] = frame
    return found


def attempts(results, stage) -> pd.DataFrame:
    return pd.read_json(results / f"digits/{stage}/attempts.jsonl", lines=True, convert_dates=["time"])


@pytest.mark.slow
def test_every_image_of_the_manifest_is_counted_once(finished_run, frames):
    manifest = pd.read_csv(finished_run.path / "data/digits/manifest.csv.gz", dtype={"class": str})
    images = manifest[manifest.path.str.startswith("val/")].label.value_counts().to_dict()
    for frame in frames.values():
        assert sorted(frame.position) == list(range(360))
        assert frame.label.value_counts().to_dict() == images


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("which", SETS)
def test_accuracy_from_the_predictions(results, table, frames, stage, which):
    row, frame = table.loc[stage], frames[stage]
    evaluation = json.loads((results / f"digits/{stage}/evaluation.json").read_text())
    assert row.n == len(frame) == evaluation[which]["n"]
    assert evaluation[which]["loss"] == pytest.approx(frame[f"loss_{which}"].mean(), rel=1e-12)
    for k in (1, 5):
        right = frame[f"right{k}_{which}"]
        interval = binomtest(int(right.sum()), len(right)).proportion_ci(0.95, method="wilson")
        assert row[f"right{k}_{which}"] == evaluation[which][f"right{k}"] == right.sum()
        assert row[f"top{k}_{which}"] == pytest.approx(100 * right.mean(), abs=6e-5)
        assert row[f"top{k}_{which}_low"] == pytest.approx(100 * interval.low, abs=6e-5)
        assert row[f"top{k}_{which}_high"] == pytest.approx(100 * interval.high, abs=6e-5)
    whole = frame.sort_values("position")[f"right1_{which}"][:256]  # two whole batches of 128
    assert row[f"top1_{which}_whole_batches"] == pytest.approx(100 * whole.mean(), abs=6e-5)


@pytest.mark.slow
def test_differences_compare_like_with_like(table):
    assert (table.select_by == "ema").all() and table.reported_top1.isna().all() and table.minus_reported.isna().all()
    assert table.minus_paper.to_list() == pytest.approx((table.top1_ema - 99.0).to_list(), abs=1e-4)


@pytest.mark.slow
def test_mcnemar_from_the_predictions(table, frames):
    assert pd.isna(table.loc["stage1", "mcnemar_p"])
    for before, now in (STAGES[:2], STAGES[1:]):
        both = frames[before].merge(frames[now], on="position", suffixes=("_before", ""), validate="one_to_one")
        counts = pd.crosstab(both.right1_ema_before, both.right1_ema).reindex([True, False], axis=0, fill_value=0)
        counts = counts.reindex([True, False], axis=1, fill_value=0)
        lost, gained = counts.loc[True, False], counts.loc[False, True]
        row = table.loc[now]
        assert (row.mcnemar_lost, row.mcnemar_gained) == (lost, gained)
        assert row.mcnemar_p == pytest.approx(binomtest(int(lost), int(lost + gained)).pvalue if lost + gained else 1, rel=1e-3)
    assert table.mcnemar_gained.sum() > 0  # after four epochs the stages do differ


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_classes_and_confusions_from_the_predictions(results, frames, stage):
    frame = frames[stage]
    classes = pd.read_csv(results / f"digits/{stage}/per_class.csv").set_index("class")
    confused = pd.read_csv(results / f"digits/{stage}/confusions.csv")
    for which in SETS:
        groups = frame.groupby("label")[f"right1_{which}"]
        assert classes.n.to_list() == groups.size().to_list()
        assert classes[f"right1_{which}"].to_list() == groups.sum().to_list()
        assert classes[f"top1_{which}"].to_list() == pytest.approx((100 * groups.mean()).to_list(), abs=6e-5)
        mine = confused[confused.weights == which]
        worst = (1 - groups.mean()).loc[lambda share: share > 0].sort_values(ascending=False, kind="stable")
        assert mine["class"].drop_duplicates().to_list() == worst.index.to_list()
        wrong = frame[~frame[f"right1_{which}"]].groupby(["label", f"first_{which}"]).size()
        for row in mine.itertuples():
            assert row.images == wrong[row[3], row.taken_for] and row.share == pytest.approx(100 * row.images / row.n, abs=6e-5)
        for label, group in mine.groupby("class"):
            assert group.images.to_list() == wrong[label].sort_values(ascending=False).to_list()[:5]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_effort_and_origin_from_the_files(results, table, stage):
    row, tried = table.loc[stage], attempts(results, stage).set_index("event")
    history = pd.read_json(results / f"digits/{stage}/history.jsonl", lines=True)
    steps = history[history.kind == "step"]
    hours = (tried.time["end"] - tried.time["start"]).total_seconds() / 3600
    assert row.train_hours == pytest.approx(hours, abs=6e-5) and row.between_hours == 0
    assert row.train_hours * 3600 + 2 >= steps.seconds.sum()  # attempts have whole seconds
    assert row.images_per_s == pytest.approx(32 * len(steps) / steps.seconds.sum(), abs=6e-3)
    assert row.data_wait_hours == pytest.approx((steps.seconds * steps.wait).sum() / 3600, abs=6e-5)
    assert (row.attempts, row.resumes, row.attempts_unended, row.devices) == (1, 0, 0, 1)
    for column, file in (("checkpoint_sha256", f"{stage}/checkpoint.safetensors"), ("config_sha256", f"config/{stage}.yaml")):
        assert row[column] == hashlib.sha256((results / "digits" / file).read_bytes()).hexdigest()
    data = json.loads((results.parent / "data/digits/dataset.json").read_text())
    assert row.manifest_sha256 == data["manifest_hash"]
    git = tried.git["start"]
    assert row.git_commit == (git["commit"] + "-dirty" * git["dirty"] if isinstance(git, dict) else "unknown")


@pytest.mark.slow
def test_table_says_what_was_trained(results, table):
    history = {s: pd.read_json(results / f"digits/{s}/history.jsonl", lines=True) for s in STAGES}
    assert table[["start_epoch", "epochs"]].to_numpy().tolist() == [[0, 2], [2, 3], [3, 4]]
    assert (table.select_on == "val").all() and (table.run == "digits").all()
    for stage, rows in history.items():
        epochs = rows[rows.kind == "epoch"].set_index("epoch")
        right = epochs.ema.map(lambda figures: figures["right1"])
        assert table.loc[stage, "best_epoch"] == right.idxmax()
        assert table.loc[stage, "right1_ema"] == right.max()  # the checkpoint, evaluated anew, is the epoch that was chosen


@pytest.mark.slow
def test_json_holds_the_same_values(results):
    content = json.loads((results / "final_acc.json").read_text())
    table = pd.read_csv(results / "final_acc.csv")
    types = {"text": str, "integer": int, "number": (int, float)}
    assert [c["name"] for c in content["columns"]] == list(table.columns) == list(content["rows"][0])
    for found, wanted in zip(content["rows"], table.to_dict("records"), strict=True):
        for column in content["columns"]:
            value, other = found[column["name"]], wanted[column["name"]]
            assert (value is None) == pd.isna(other)
            assert value is None or (isinstance(value, types[column["type"]]) and value == other)


@pytest.mark.slow
def test_markdown_is_readable_as_it_is(results, table):
    text = (results / "final_acc.md").read_text()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 90 and max(len(line) for line in lines if line.startswith("|")) <= 80
    assert len({line.index("|", 1) for line in lines if line.startswith("|")}) == 1  # columns stand under each other
    cells = {}
    for line in lines:
        if line.startswith("|"):
            label, *values = (cell.strip() for cell in line.strip("|").split("|"))
            cells.setdefault(label, values)
    assert cells["**top-1, EMA, %**"] == [f"{value:.2f}" for value in table.top1_ema]
    assert cells["images lost, gained"][1] == f"-{table.mcnemar_lost['stage2']:.0f} +{table.mcnemar_gained['stage2']:.0f}"
    assert cells["checkpoint"] == [digest[:12] for digest in table.checkpoint_sha256]
    assert "optimistic" in text and "minival" not in text
    assert "reported top-1, %" not in cells  # no stage has one


@pytest.mark.slow
def test_the_run_ends_with_the_table_and_where_to_look_next(results, table):
    said = outcome(results / "digits")
    lines = {line.split()[0]: line.split() for line in said.splitlines() if line.startswith("stage")}
    assert "top-1, %" in said and "reported, %" in said
    for stage, row in table.iterrows():
        assert lines[stage][1:3] == ["EMA", f"{row.top1_ema:.2f}"] and lines[stage][6:8][0] == "–"
        assert lines[stage][7] == "99.00"
    for file in ("table.html", "README.md"):
        assert f"{results}/digits/{file}" in said and (results / "digits" / file).exists()
    assert max(len(line) for line in said.splitlines() if "stage" in line) <= 80


@pytest.mark.parametrize("empty", [None, ""])
def test_reported_and_published_stand_beside_the_top1(empty):
    row = {"stage": "s", "select_by": "raw", "top1_raw": 83.518, "top1_raw_low": 83.19, "top1_raw_high": "83.84"}
    row |= {"reported_top1": "83.42", "minus_reported": 0.1, "paper_top1": empty, "minus_paper": empty}
    assert headline(row) == ["s", "raw", "83.52", "83.19 to 83.84", "83.42 (+0.10)", "–"]
    assert headline(row | {"minus_reported": empty})[4] == "83.42"  # below 128 images


@pytest.mark.parametrize(("missing", "remedy"), [("final_acc.csv", "cswin table"), ("curves.png", "cswin draw curves")])
def test_results_page_names_what_is_missing(tmp_path, capsys, missing, remedy):
    (tmp_path / "final_acc.csv").write_text("run,stage\nr,s\n")
    (tmp_path / missing).unlink(missing_ok=True)
    files = [str(tmp_path / name) for name in ("final_acc.csv", "curves.png", "page.html")]
    assert main(["page", "table", files[0], "--curves", files[1], "--output", files[2]]) == 2
    said = capsys.readouterr().err
    assert f"{missing}: cannot be read" in said and remedy in said and not Path(files[2]).exists()


def test_many_stages_are_shown_three_abreast():
    row = {column.name: {"text": "x", "integer": 1, "number": 0.5}[column.kind] for column in COLUMNS} | {"select_by": "raw"}
    table = pd.DataFrame([row | {"stage": f"part{i}", "reported_top1": None if i else 83.42} for i in range(7)])
    text = markdown_table(table, "seven")
    assert [re.findall(r"part\d", line) for line in text.splitlines() if "part" in line] == [
        ["part0", "part1", "part2"], ["part3", "part4", "part5"], ["part6"]
    ]  # fmt: skip
    assert text.count("reported top-1, %") == 1 and "compare them with that line only" in text


def test_columns_are_documented(capsys):
    assert reference_text() in (ROOT / "results/README.md").read_text()
    with pytest.raises(SystemExit) as end:
        main(["table", "--columns"])
    assert end.value.code == 0 and capsys.readouterr().out == reference_text()


@pytest.fixture
def run(finished_run, tmp_path):
    return shutil.copytree(finished_run.path / "results/digits", tmp_path / "digits", ignore=shutil.ignore_patterns("state"))


def make_table(run: Path) -> int:
    return main(["table", str(run), "--settings", str(run / "config/expectations.yaml"), "--output", str(run / "new.csv")])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("stage2/record.json", lambda c: c | {"sha256": "0" * 64}, "stage2/evaluation.json: is of another checkpoint"),
        ("stage2/evaluation.json", lambda c: c | {"ema": c["ema"] | {"right1": 1}}, "does not give the figures of"),
        ("stage3/evaluation.json", None, "stage3: the stage is not trained and evaluated yet"),
        ("stage3/predictions.npz", None, "predictions.npz: cannot be read as predictions"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(run, capsys, file, change, words):
    path = run / file
    if change is None:
        path.unlink()
    else:
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    assert make_table(run) == 2
    assert words in capsys.readouterr().err and not (run / "new.csv").exists()


@pytest.mark.slow
def test_reported_figures_are_compared_in_the_reports_counting(run):
    settings = run / "config/expectations.yaml"
    settings.write_text(settings.read_text().replace("stage2: null", "stage2: 83.51"))
    assert make_table(run) == 0
    table = pd.read_csv(run / "new.csv").set_index("stage")
    row = table.loc["stage2"]
    assert row.reported_top1 == 83.51 and table.reported_top1.count() == 1
    assert row.minus_reported == pytest.approx(row.top1_ema_whole_batches - 83.51, abs=1e-4)


@pytest.mark.slow
def test_unknown_kind_of_table_is_refused(run, capsys):
    assert main(["table", str(run), "--settings", str(run / "config/expectations.yaml"), "--output", "table.xls"]) == 2
    assert "table.xls: a table is written as .csv, .json, .md" in capsys.readouterr().err
