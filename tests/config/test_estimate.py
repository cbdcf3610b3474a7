"""`cswin plan` against counts on paper, against the report's own hours, and against the files of a real run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from recipes import recipe

from cswin.cli import main
from cswin.config.resolve import load_settings, parse_settings, resolve_stage
from cswin.errors import UserError
from cswin.estimate import count_images, estimate_stage, estimate_text
from cswin.run.history import read_history

REPORT = "config/imagenet/report_small_224.yaml"


def test_report_on_paper():
    settings = load_settings(REPORT)
    images = count_images(settings.data)
    stages = [estimate_stage(resolve_stage(settings, name), settings.runtime, images) for name in settings.stages]
    assert [s.steps for s in stages] == [320 * 1251, 60 * 1251, 120 * 1251]  # 1,281,167 // 1024
    assert [s.trained for s in stages] == [n * 1251 * 1024 for n in (320, 60, 120)]
    assert [s.validated for s in stages] == [n * 2 * 50_000 for n in (320, 60, 120)]
    parameters = 34_643_304
    assert {s.checkpoint for s in stages} == {2 * 4 * parameters} and {s.state for s in stages} == {6 * 4 * parameters}
    # 35.5 minutes an epoch were reported, for the whole training set: 602 images/s
    assert stages[0].hours(602) == pytest.approx(320 * 35.5 / 60, rel=0.01)


def test_validation_is_counted_as_it_is_done():
    settings = parse_settings(recipe(evaluation={"every": 7, "select_on": "minival", "minival_images": 5000}))
    stage = estimate_stage(resolve_stage(settings, "stage1"), settings.runtime, count_images(settings.data))
    assert stage.validated == (45 + 1) * 2 * 5000  # after epochs 7, 14, …, 315 and after the last, 320
    assert stage.steps == 320 * (1_276_167 // 1024)


def test_accumulation_and_batch_change_memory():
    def memory(**runtime):
        settings = parse_settings(recipe(runtime=runtime))
        return estimate_stage(resolve_stage(settings, "stage1"), settings.runtime, count_images(settings.data)).memory

    whole, half = memory(), memory(batch_size=64, accumulation=2)
    weights = 4 * 34_643_304
    assert whole - 5 * weights == 2 * (half - 6 * weights)  # the sums of the gradients are one copy more


@pytest.mark.slow
def test_files_of_a_real_run(finished_run, monkeypatch):
    monkeypatch.chdir(finished_run.path)
    settings = load_settings("config/config.yaml")
    images = count_images(settings.data)
    assert (images.train, images.val, images.counted_by) == (1437, 360, "data/digits/manifest.json")
    for name in settings.stages:
        estimate = estimate_stage(resolve_stage(settings, name), settings.runtime, images)
        folder = finished_run.path / "results" / "digits" / name
        assert estimate.checkpoint == pytest.approx((folder / "checkpoint.safetensors").stat().st_size, rel=0.02)
        states = sorted((folder / "state").glob("state-*.safetensors"))
        assert estimate.state == pytest.approx(states[-1].stat().st_size, rel=0.02)
        rows = read_history(folder / "history.jsonl")
        assert estimate.steps == sum(row["kind"] == "step" for row in rows)
        history = estimate.disk - estimate.checkpoint - settings.runtime.keep_states * estimate.state
        assert history == pytest.approx((folder / "history.jsonl").stat().st_size, rel=0.25)
        # A stage as short as these keeps its first state, which holds no best epoch yet, and perhaps no third one.
        whole = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        assert estimate.checkpoint + 1.5 * estimate.state < whole < 1.02 * estimate.disk


@pytest.mark.slow
def test_disk_of_the_data(finished_run, monkeypatch, capsys):
    monkeypatch.chdir(finished_run.path)
    assert main(["plan", "--images-per-s", "100"]) == 0
    text = capsys.readouterr().out
    data = finished_run.path / "data" / "digits"
    size = sum(file.stat().st_size for file in (data / "images").rglob("*.JPEG"))
    assert f"images {size / 1e6:.1f} MB (data/digits/manifest.json)" in text
    assert "hours at 100 images/s" in text and "1,437 training and 360 validation images" in text


def test_archive_tells_the_size(tmp_path):
    archive = tmp_path / "imagenet.tar.gz"
    with archive.open("wb") as file:
        os.truncate(file.fileno(), 150 * 10**9)  # sparse
    settings = parse_settings(recipe(data={"archive": str(archive)}))
    assert f"images 150.0 GB (size of {archive})" in estimate_text(settings, None)


def test_unknown_number_of_images_is_refused(tmp_path, capsys):
    values = yaml.safe_load(Path("config/finetune.yaml").read_text())
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    assert main(["plan", str(file)]) == 2
    assert "data.expect_train" in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["0", "-1", "nan"])
def test_bad_rate_is_refused(rate, capsys):
    assert main(["plan", REPORT, f"--images-per-s={rate}"]) == 2
    assert "must be positive" in capsys.readouterr().err


def test_too_few_images_are_refused():
    settings = parse_settings(recipe(data={"expect_train": 1000}))
    with pytest.raises(UserError, match="global_batch: 1024 is more than the 1000"):
        estimate_stage(resolve_stage(settings, "stage1"), settings.runtime, count_images(settings.data))


def test_no_mindspore_needed():
    code = "import sys, cswin.estimate; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
