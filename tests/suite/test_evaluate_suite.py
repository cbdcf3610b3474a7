"""`cswin evaluate --suite` on files: figures counted by hand, from a network that always says the same; datasets that are refused."""

import subprocess
import sys

import pandas as pd
import pytest
import yaml
from conftest import ROOT
from converted import converted
from image_trees import image_bytes, write_tar, write_tree
from networks import unvarying_checkpoint

from cswin.class_names import imagenet_words
from cswin.cli import main
from cswin.config.resolve import dump
from cswin.config.runtime import Runtime
from cswin.errors import UserError
from cswin.suite.sets import IMAGES, class_indices, real_labels
from cswin.suite.suite import Suite, open_suite

WNIDS = tuple(imagenet_words())
BEST = (795, 6, 1, 13, 11)  # what the network says of every image; ImageNet-A has 6, 13, 11, and -R has 1, 6, 13, 11
IMAGE = image_bytes(0, size=(32, 32))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return unvarying_checkpoint(tmp_path_factory.mktemp("checkpoint") / "m.safetensors", BEST, ema=True)


def tree(folder, images):
    """Files by class -> the folder."""
    return write_tree(folder, {f"{name}/{file}": IMAGE for name, files in images.items() for file in files})


def refusal(file):
    with pytest.raises(UserError) as error:
        open_suite(file, WNIDS)
    assert str(error.value).startswith(f"{file}: ")
    return str(error.value).removeprefix(f"{file}: ")


def suite_file(folder, **content):
    (folder / "suite.yaml").write_text(
        yaml.safe_dump({key: str(v) if hasattr(v, "parts") else v for key, v in content.items()})
    )
    return folder / "suite.yaml"


def validation(number):
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def test_figures_by_hand(tmp_path, checkpoint, capsys):
    """ReaL: no label for image 1, {795, 970} for image 2, {230, 231} for image 3, {809} for image 4."""
    assert [set(found) for found in real_labels()[:4]] == [set(), {795, 970}, {230, 231}, {809}]
    val = {WNIDS[970]: [validation(2), validation(3)], WNIDS[6]: [validation(1)], WNIDS[1]: [validation(4)]}
    datasets = {
        "validation": tree(tmp_path / "val", val),
        "imagenet_v2": tree(tmp_path / "v2", {"795": ["a.jpeg"], "2": ["b.jpeg"], "11": ["c.jpeg", "d.jpeg"]}),
        "imagenet_a": tree(tmp_path / "a", {WNIDS[6]: ["a.jpg"], WNIDS[15]: ["b.jpg", "c.jpg", "d.jpg"]}),
    }
    file = suite_file(tmp_path, **datasets, partial=True)
    arguments = ["--suite", str(file), "--which", "raw", "--batch", "3", "--workers", "1", "--output", str(tmp_path / "s.csv")]
    assert main(["evaluate", "--checkpoint", str(checkpoint), *arguments]) == 0
    table = pd.read_csv(tmp_path / "s.csv").set_index("set")
    counted = {name: (row.right1, row.right5, row.n) for name, row in table.iterrows()}
    assert counted == {
        "imagenet": (0, 2, 4),  # 6 and 1 are the second and the third guess
        "imagenet-real": (1, 1, 3),  # 795 is right in image 2
        "imagenet-a-clean": (1, 1, 1),  # 6 is the first guess among its classes
        "imagenet-r-clean": (1, 2, 2),  # 6 and 1 are the first two
        "imagenetv2-matched-frequency": (1, 3, 4),
        "imagenet-a": (1, 4, 4),  # after 6, 13 and 11 comes the first of equal logits, 15
    }
    assert table.top1_diff.round(3).to_dict()["imagenet-a"] == -75
    assert (table.model == "m").all() and (table.weights == "raw").all()
    out, err = capsys.readouterr()
    assert "m.safetensors: raw weights" in out and "imagenet-real" in out and "compete" not in err


def test_validation_as_a_converted_dataset(tmp_path):
    """The manifest knows the names of the files."""
    numbers = {WNIDS[970]: (2, 3), WNIDS[6]: (1,), WNIDS[1]: (4, 7)}
    files = {
        f"{split}/{name}/{validation(n)}": image_bytes(n)
        for split in ("train", "val")
        for name in numbers
        for n in numbers[name]
    }
    dataset = converted(tmp_path / "data", files)
    source = open_suite(suite_file(tmp_path, validation=dataset.path, partial=True), WNIDS)["validation"]
    names, rows = source.names(), list(source.rows(slice(None)))
    assert len(names) == len(rows) == 5
    for position, label, data, *_ in rows:
        number = int(names[position][15:23])
        assert data == image_bytes(number) and number in numbers[WNIDS[label]]
    dataset.path.with_name("manifest.json").unlink()
    assert "manifest.json" in refusal(suite_file(tmp_path, validation=dataset.path, partial=True))
    assert (
        open_suite(suite_file(tmp_path, validation=dataset.path, partial=True, real=False), WNIDS)["validation"].names is None
    )


def test_datasets_that_are_missing_wrong_or_not_complete_are_all_named(tmp_path, checkpoint, capsys):
    a, r = (WNIDS[index] for index in (6, 1))
    content = {
        "validation": tree(tmp_path / "val", {a: [validation(1)]}),
        "imagenet_v2": tmp_path / "none",
        "imagenet_a": tree(tmp_path / "r", {a: ["1.jpg"], r: ["2.jpg"]}),
        "imagenet_r": tree(tmp_path / "strange", {"zebra": ["1.jpg"]}),
        "sketch": write_tar(tmp_path / "sketch.tar", {f"val/{a}/1.jpg": IMAGE}),
    }
    file = suite_file(tmp_path, **content)
    assert main(["evaluate", "--checkpoint", str(checkpoint), "--suite", str(file)]) == 2
    lines = capsys.readouterr().err.removeprefix("cswin evaluate: ").splitlines()
    for line, (key, path), words in zip(lines, content.items(), (
        "lacks 999 of 1,000 classes (n01440764, n01443537",
        "there is no such file or folder",
        "is another dataset: 1 of its classes do not belong here (n01443537); give the right one",
        "holds classes that the checkpoint does not have: zebra",
        "is a file; give a folder of images",
    ), strict=True):  # fmt: skip
        assert line.startswith(f"{file}: {key}: {path}") and words in line, line


def test_every_class_but_too_few_images(tmp_path, monkeypatch):
    folder = tree(tmp_path / "a", {WNIDS[index]: ["1.jpg"] for index in class_indices("a")})
    file = suite_file(tmp_path, imagenet_a=folder)
    remedy = "get the rest, or set partial: true to judge what is there"
    assert refusal(file) == f"imagenet_a: {folder} holds 200 images, it should hold 7,500; {remedy}"
    monkeypatch.setitem(IMAGES, "imagenet_a", 200)  # as if they were all
    assert open_suite(file, WNIDS)["imagenet_a"].images == 200


def test_names_that_are_not_those_of_imagenet(tmp_path):
    """Without its own names no image has ReaL labels."""
    for number, name in enumerate(("photo.jpg", "ILSVRC2012_val_00050001.JPEG")):
        folder = tree(tmp_path / f"val{number}", {WNIDS[0]: [name]})
        found = refusal(suite_file(tmp_path, validation=folder, partial=True))
        assert f"{folder}: ReaL's labels belong to names of image files, and {name!r} is not the name" in found
        assert "set real: false" in found
        assert open_suite(suite_file(tmp_path, validation=folder, partial=True, real=False), WNIDS)["validation"].images == 1


def test_a_shard_knows_no_names(tmp_path):
    files = {f"{split}/{WNIDS[0]}/{split}.JPEG": IMAGE for split in ("train", "val")}
    dataset = converted(tmp_path / "data", files)
    (tmp_path / "names.txt").write_text(WNIDS[0])
    content = {"validation": dataset.shards("val")[0], "classes_from": tmp_path / "names.txt", "partial": True}
    assert "and it does not know them; give the folder" in refusal(suite_file(tmp_path, **content))
    assert open_suite(suite_file(tmp_path, **content, real=False), WNIDS)["validation"].images == 1
    del content["classes_from"]
    found = refusal(suite_file(tmp_path, **content, real=False))
    assert found.endswith("does not know the names of its classes; give its dataset.json, or classes_from")


def test_files_that_are_no_suite(tmp_path):
    assert "valdation: unknown key (value '/x'); did you mean 'validation'?" in refusal(suite_file(tmp_path, valdation="/x"))
    assert "partial: 'yes please' is refused" in refusal(suite_file(tmp_path, partial="yes please"))
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert refusal(tmp_path / "empty.yaml").endswith("is empty; write key: value")
    assert "gives no dataset; give one or more of validation, imagenet_v2" in refusal(suite_file(tmp_path))
    (tmp_path / "list.yaml").write_text("- a\n")
    assert refusal(tmp_path / "list.yaml")
    with pytest.raises(UserError, match="1,000 classes of ImageNet-1K in their order .*, this one has 10: 0, 1"):
        open_suite(suite_file(tmp_path, validation="/x"), tuple("0123456789"))


def test_options_without_effect_are_refused(tmp_path, checkpoint, capsys):
    file = suite_file(tmp_path, validation="/x")
    for options, words in (
        (["--suite", str(file), "--predictions", "p.npz"], "--predictions: has no effect with --suite"),
        (["--data", str(tmp_path), "--which", "raw"], "--which: has no effect with --data"),
    ):
        assert main(["evaluate", "--checkpoint", str(checkpoint), *options]) == 2
        assert words in capsys.readouterr().err


def test_the_shipped_example_names_every_key():
    text = (ROOT / "docs/suite.yaml").read_text()
    given = yaml.safe_load(text)
    assert list(given) == list(IMAGES)
    assert set(Suite.model_fields) - set(given) == {
        line[2:].split(":")[0] for line in text.splitlines() if line.startswith(("# classes_from:", "# real:", "# partial:"))
    }
    Suite.model_validate(given)


@pytest.mark.slow
def test_two_processes_share_the_images(tmp_path, checkpoint):
    """Also where one of them has no image of a set's classes."""
    val = tree(tmp_path / "val", {WNIDS[970]: [validation(2), validation(3)], WNIDS[6]: [validation(1)]})
    file = suite_file(tmp_path, validation=val, imagenet_r=tree(tmp_path / "r", {WNIDS[1]: ["a.jpg"]}), partial=True)
    texts = []
    for devices in (1, 2):
        runtime, output = tmp_path / f"{devices}.yaml", tmp_path / f"{devices}.csv"
        runtime.write_text(
            dump(
                Runtime(device_target="CPU", devices=devices, batch_size=1, eval_batch_size=2, workers=1, worker_kind="thread")
            )
        )
        arguments = ["--checkpoint", checkpoint, "--suite", file, "--runtime", runtime, "--output", output]
        command = [sys.executable, "-m", "cswin", "evaluate", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        texts.append(output.read_text())
    assert texts[0] == texts[1] and texts[0].count("\n") == 1 + 5
