"""`cswin evaluate` on data whose classes are not the checkpoint's: figures counted by hand, from a network that always says the same."""

import json

import numpy as np
import pytest
from image_trees import small_files, write_tree
from networks import unvarying_checkpoint

from cswin.checkpoint import load_checkpoint
from cswin.cli import main

BEST = (5, 999, 0, 7, 8)  # what the network says of every image, most probable first


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return unvarying_checkpoint(tmp_path_factory.mktemp("checkpoint") / "m.safetensors", BEST)


def test_a_part_of_imagenet_in_numbered_folders(tmp_path, checkpoint, capsys):
    """1 image of class 0, 2 of class 10, 3 of class 5."""
    files = small_files(0, 1, ("0",)) | small_files(0, 2, ("10",)) | small_files(0, 3, ("5",))
    write_tree(tmp_path / "v2", {name.removeprefix("val/"): data for name, data in files.items()})
    options = ["--output", str(tmp_path / "e.json"), "--batch", "4", "--workers", "1"]
    assert main(["evaluate", "--checkpoint", str(checkpoint), "--data", str(tmp_path / "v2"), *options]) == 0
    found = json.loads((tmp_path / "e.json").read_text())
    assert [found["raw"][key] for key in ("n", "right1", "right5")] == [6, 3, 4]
    bias = load_checkpoint(checkpoint).weights["head.bias"].astype(float)
    losses = np.log(np.exp(bias).sum()) - bias[[0, 10, 10, 5, 5, 5]]
    assert found["raw"]["loss"] == pytest.approx(losses.mean(), rel=1e-6)
    note = f"{tmp_path / 'v2'}: classes are matched as ImageNet's indices; the data have 3 of the checkpoint's 1000 classes, all outputs compete"
    assert note in capsys.readouterr().err and found["classes"] == note


def test_what_cannot_be_matched_ends_before_any_work(tmp_path, checkpoint, capsys):
    write_tree(tmp_path / "own", {"n01440764/a.JPEG": b"no image", "zebra/b.JPEG": b"no image"})
    assert main(["evaluate", "--checkpoint", str(checkpoint), "--data", str(tmp_path / "own")]) == 2
    assert "own: holds classes that the checkpoint does not have: zebra; it has n01440764" in capsys.readouterr().err


def test_more_images_at_once_than_memory_can_hold(tmp_path, checkpoint, capsys):
    write_tree(tmp_path / "own", {"n01440764/a.JPEG": small_files(0, 1, ("x",))["val/x/x_0.JPEG"]})
    arguments = ["evaluate", "--checkpoint", str(checkpoint), "--data", str(tmp_path / "own"), "--batch", "100000000"]
    assert main(arguments) == 2
    assert "100,000,000 images at a time" in capsys.readouterr().err
