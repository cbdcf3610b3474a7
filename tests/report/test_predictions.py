"""Predictions: each image once whatever is joined, the file holds all that was said, classes and confusions by hand."""

import numpy as np
import pandas as pd
import pytest

from cswin.errors import UserError
from cswin.predictions import Predictions, load_predictions, save_predictions
from cswin.report.classes import confusions, per_class


def made(labels, top5, positions=None) -> Predictions:
    labels, top5 = np.array(labels, np.int32), np.array(top5, np.int32)
    positions = np.arange(len(labels)) if positions is None else np.array(positions)
    return Predictions(labels, top5, np.linspace(0.1, 2.3, len(labels)), positions)


def random_predictions(n: int, classes: int = 12) -> Predictions:
    rng = np.random.default_rng(n)
    top5 = np.argsort(rng.random((n, classes)), axis=1)[:, :5].astype(np.int32)
    return Predictions(rng.integers(classes, size=n).astype(np.int32), top5, rng.random(n), np.arange(n))


def taken(predictions, rows) -> Predictions:
    return Predictions(*(getattr(predictions, name)[rows] for name in ("labels", "top5", "losses", "positions")))


def test_the_reports_counting_drops_the_last_batch():
    top5 = np.zeros((300, 5), np.int32)
    top5[256:, 0] = 1  # wrong, but not in a whole batch of 128
    figures = made(np.zeros(300), top5).figures()
    assert figures["top1_whole_batches"] == 100.0 and figures["right1"] == 256 and figures["right5"] == 300


def test_fewer_images_than_a_whole_batch():
    assert random_predictions(127).figures()["top1_whole_batches"] is None
    assert random_predictions(128).figures()["top1_whole_batches"] == random_predictions(128).figures()["top1"]


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_shares_of_devices_are_put_in_order(devices):
    whole = random_predictions(301)
    parts = [taken(whole, np.arange(301)[rank::devices]) for rank in range(devices)]
    joined = Predictions.join(parts[::-1])
    assert joined.figures() == whole.figures()  # the loss to the last bit: the order is the same
    assert np.array_equal(joined.positions, np.arange(301))


def test_file_holds_what_was_said(tmp_path):
    results, names = {"raw": random_predictions(50), "ema": taken(random_predictions(50), slice(None))}, tuple("abcdefghijkl")
    save_predictions(tmp_path / "p.npz", results, names)
    loaded, found = load_predictions(tmp_path / "p.npz")
    assert found == names and list(loaded) == ["raw", "ema"]
    for which, predictions in results.items():
        for name in ("labels", "top5", "losses", "positions"):
            array = getattr(loaded[which], name)
            assert array.dtype == getattr(predictions, name).dtype and np.array_equal(array, getattr(predictions, name))


def test_file_of_imagenet_s_size_is_compact(tmp_path):
    names = tuple(f"n{i:08d}" for i in range(1000))
    save_predictions(tmp_path / "p.npz", {"raw": random_predictions(50_000, 1000)}, names)
    assert (tmp_path / "p.npz").stat().st_size < 1_500_000  # random classes compress worse than a network's
    assert load_predictions(tmp_path / "p.npz")[0]["raw"].top5.max() == 999


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"nothing of the kind"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "p.npz"
    save_predictions(path, {"raw": random_predictions(50)}, tuple("abcdefghijkl"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="p.npz: cannot be read as predictions.*cswin evaluate"):
        load_predictions(path)


NAMES = ("cat", "dog", "cow", "emu")  # no image of an emu
RAW = made([0, 0, 0, 0, 1, 1, 2, 2, 2], [[0, 1], [1, 0], [1, 2], [2, 1], [1, 0], [1, 2], [2, 0], [3, 2], [2, 1]])
EMA = made([0, 0, 0, 0, 1, 1, 2, 2, 2], [[0, 1], [0, 1], [0, 2], [0, 1], [1, 0], [0, 1], [2, 0], [2, 1], [2, 1]])


def test_per_class_by_hand():
    table = per_class({"raw": RAW, "ema": EMA}, NAMES)
    wanted = pd.DataFrame(
        {
            "class": ["cat", "dog", "cow"], "n": [4, 2, 3], "right1_raw": [1, 2, 2], "right1_ema": [4, 1, 3],
            "top1_raw": [25.0, 100.0, 66.6667], "top1_ema": [100.0, 50.0, 100.0],
        }
    )  # fmt: skip
    pd.testing.assert_frame_equal(table, wanted, check_dtype=False)


def test_confusions_by_hand():
    table = confusions({"raw": RAW, "ema": EMA}, NAMES)
    assert list(table.itertuples(index=False, name=None)) == [
        ("raw", 1, "cat", 4, 25.0, "dog", 2, 50.0),
        ("raw", 1, "cat", 4, 25.0, "cow", 1, 25.0),
        ("raw", 2, "cow", 3, 66.6667, "emu", 1, 33.3333),
        ("ema", 1, "dog", 2, 50.0, "cat", 1, 50.0),
    ]
    assert confusions({"raw": RAW}, NAMES, worst=1, taken_for=1).to_dict("records")[0]["taken_for"] == "dog"
    assert len(confusions({"raw": RAW}, NAMES, worst=1, taken_for=1)) == 1


def test_no_error_no_confusion():
    right = made([0, 1], [[0, 1], [1, 0]])
    table = confusions({"raw": right}, NAMES)
    assert table.empty and list(table.columns)[:3] == ["weights", "rank", "class"]
