"""`cswin data …`: the whole path by commands, exit codes, logs; and every source through the workflow's rules."""

import io
import json

import image_layouts as layouts
import numpy as np
import pytest
from conftest import shorten
from image_trees import small_files, write_ilsvrc, write_tar, write_tree
from PIL import Image

from cswin.cli import main
from cswin.data.store.dataset import Dataset, read_rows


def data(*arguments: object) -> int:
    return main(["data", *map(str, arguments)])


def make(folder, *manifest_options) -> None:
    """From the archive to dataset.json."""
    images, rows, summary = folder / "images", folder / "manifest.csv.gz", folder / "manifest.json"
    assert data("extract", "--archive", folder / "a.tar.gz", "--output", images, "--receipt", folder / "extracted.json") == 0
    assert data("manifest", "--images", images, "--output", rows, "--summary", summary, *manifest_options) == 0
    for split, facts in json.loads(summary.read_text())["splits"].items():
        for shard in range(facts["shards"]):
            output = folder / "shards" / f"{split}-{shard:05d}.mindrecord"
            arguments = ["--images", images, "--manifest", rows, "--summary", summary, "--output", output]
            assert data("convert", *arguments, "--split", split, "--shard", shard, "--log", folder / "logs" / output.name) == 0
    assert data("dataset", "--summary", summary, "--shards-dir", folder / "shards", "--output", folder / "dataset.json") == 0


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    assert data("digits", "--output", folder / "a.tar.gz") == 0
    promised = ["--expect-train", 1437, "--expect-val", 360, "--expect-classes", 10]
    make(folder, *promised, "--shard-mb", 1, "--workers", 2, "--log", folder / "logs" / "manifest")
    return folder


def test_digits_end_to_end(digits):
    dataset = Dataset.load(digits / "dataset.json")
    assert dataset.class_names == tuple("0123456789")
    assert (dataset.images("train"), dataset.images("val"), len(dataset.shards("train"))) == (1437, 360, 2)
    _, label, image = next(read_rows(dataset, "train", np.array([700])))
    path = next(path for path in digits.rglob("train/*/*.JPEG") if path.read_bytes() == image)
    assert path.parent.name == str(label)


def test_logs(digits):
    assert "manifest: 1,797 of 1,797 images" in (digits / "logs" / "manifest").read_text()
    lines = (digits / "logs" / "val-00000.mindrecord").read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == ["convert val-00000", "read back val-00000"]


def test_verify_and_its_exit_code(digits, tmp_path, capsys):
    assert data("verify", digits / "dataset.json") == 0
    output = capsys.readouterr().err
    assert "train-00001.mindrecord: 719 rows, good" in output and "all shards are good" in output
    write_tree(tmp_path, {p.relative_to(digits).as_posix(): p.read_bytes() for p in digits.rglob("*.*") if p.is_file()})
    shard = tmp_path / "shards" / "val-00000.mindrecord"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert data("verify", tmp_path / "dataset.json", "--log", tmp_path / "verify.log") == 1
    output = capsys.readouterr().err
    assert (
        "val-00000.mindrecord: val-00000.mindrecord has" in output
        and "verify: damaged; convert again with: snakemake -f " in output
    )
    assert "verify: damaged" in (tmp_path / "verify.log").read_text()


def test_inspect(digits, tmp_path, capsys):
    sheet = tmp_path / "new" / "sheet.png"
    assert data("inspect", digits / "dataset.json", "--output", sheet, "--samples", 20, "--split", "val") == 0
    output = capsys.readouterr().out
    assert "digits: 10 classes" in output and "train: 1,437 images" in output and "in 2 shards" in output
    assert "val: 360 images" in output and "a class: 35 images" in output
    pixels = np.asarray(Image.open(io.BytesIO(sheet.read_bytes())))
    assert sheet.read_bytes().startswith(b"\x89PNG") and pixels.shape[1] == 8 * 116 + 4 and pixels.shape[0] == 3 * 130 + 4
    assert pixels[10:100, 10:900].std() > 50  # there are pictures
    assert pixels[2 * 130 + 10 :, 4 * 116 + 10 :].std() == 0  # and 20 of them


def test_errors_have_exit_code_2_and_are_logged(tmp_path, capsys):
    log = tmp_path / "log"
    extract = ["--archive", tmp_path / "no.tar", "--output", tmp_path / "x", "--receipt", tmp_path / "r.json"]
    assert data("extract", *extract, "--log", log) == 2
    assert "no.tar: cannot be read" in capsys.readouterr().err
    assert "no.tar: cannot be read" in log.read_text()
    assert data("inspect", tmp_path / "dataset.json") == 2


@pytest.mark.parametrize(("option", "value"), [("--shard-mb", "0"), ("--workers", "-1"), ("--on-bad-image", "replace")])
def test_wrong_options(option, value, capsys):
    with pytest.raises(SystemExit) as caught:
        data("manifest", "--images", "x", "--output", "y", "--summary", "z", option, value)
    assert caught.value.code == 2 and option in capsys.readouterr().err


FILES = small_files(5, 2)


def archive_source(folder):
    write_tar(folder / "flowers.tar.gz", {f"top/{name}": file for name, file in FILES.items()})
    return {"source": "archive", "archive": "flowers.tar.gz", "keep_images": False}, FILES


def ilsvrc_source(folder):
    train, val, devkit, expected = write_ilsvrc(folder, FILES)
    names = {"train_archive": train.name, "val_archive": val.name, "devkit": devkit.name}
    return {"source": "ilsvrc2012", **names, "keep_images": True}, expected


def folder_source(folder):
    write_tree(folder / "mine", FILES)
    return {"source": "folder", "folder": "mine"}, FILES


def auto_folder(folder):
    data, expected = layouts.own_folder(folder)
    return {"source": "auto", "path": data["folder"]}, expected


def auto_parquet(folder):
    data, expected = layouts.parquet(folder)
    return data | {"source": "auto"}, expected


SOURCES = [archive_source, ilsvrc_source, folder_source, *layouts.NEW, auto_folder, auto_parquet]


@pytest.mark.slow
@pytest.mark.variant  # of what each source reads: tests/data/test_sources.py
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_goes_through_the_rules(workspace, source):
    """From the source to dataset.json by Snakemake: every image once, in its class; then there is nothing left to do."""
    settings, expected = source(workspace.path)
    counts = {f"expect_{split}": sum(name.startswith(split) for name in expected) for split in ("train", "val")}
    settings |= {"name": "flowers", "classes": 3, **counts}
    workspace.edit("config/config.yaml", lambda config: config.update(data=settings))
    target = "data/flowers/dataset.json"
    workspace.snakemake("--cores", "2", target)
    dataset = Dataset.load(workspace.path / target)
    assert dataset.class_names == tuple(sorted({name.split("/")[1] for name in expected}))
    for split in ("train", "val"):
        rows = list(read_rows(dataset, split, np.arange(dataset.images(split))))
        found = sorted((dataset.class_names[label], image) for _, label, image in rows)
        assert found == sorted((name.split("/")[1], image) for name, image in expected.items() if name.startswith(split))
    in_place = "mine" in (settings.get("folder"), settings.get("path"))
    kept = in_place or settings.get("keep_images", True)
    assert (workspace.path / ("mine" if in_place else "data/flowers/images")).exists() == kept
    assert (workspace.path / "data/flowers/images").exists() == (kept and not in_place)
    assert workspace.planned(target) == {}


@pytest.mark.slow
def test_from_a_source_without_a_validation_set_to_the_table(workspace):
    """ImageNet-22K's layout, one image of 100 held out; every other source gives a tree of the same form."""
    settings, expected = layouts.wnid_tars(workspace.path)

    def edit(values):
        shorten(values)
        values |= {"data": {"name": "fall11", "classes": 3, **settings}, "stages": {"only": {"start_epoch": 0, "epochs": 2}}}

    workspace.edit("config/config.yaml", edit)
    workspace.snakemake("--cores", "2")
    table = (workspace.path / "results/final_acc.csv").read_text().splitlines()
    assert len(table) == 2 and "only" in table[1]
    summary = json.loads((workspace.path / "data/fall11/manifest.json").read_text())
    assert summary["splits"]["val"]["images"] == sum(name.startswith("val/") for name in expected) > 0
    assert workspace.planned() == {}
