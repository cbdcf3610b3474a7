"""The embedded dataset: the real digits, split as promised, in ImageNet's layout."""

import io
import tarfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from cswin.data.sources.digits import digit_images, split_digits, write_digits


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("digits") / "digits.tar.gz"
    write_digits(path)
    return path


@pytest.fixture(scope="module")
def members(archive):
    with tarfile.open(archive) as file:
        return {member.name: file.extractfile(member).read() for member in file}


def test_split_is_stratified_complete_and_disjoint():
    labels = load_digits().target
    train, val = split_digits(labels)
    assert (len(train), len(val)) == (1437, 360)
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(1797))
    share = np.bincount(labels[val]) - np.bincount(labels) * 360 / 1797
    assert np.abs(share).max() < 1


def test_layout(members):
    assert Counter(name.split("/")[0] for name in members) == {"train": 1437, "val": 360}
    train, _ = split_digits(load_digits().target)
    counts = np.bincount(load_digits().target[train])
    for label in range(10):
        names = [name for name in members if name.startswith(f"train/{label}/")]
        assert names == [f"train/{label}/{label}_{number:05d}.JPEG" for number in range(1, counts[label] + 1)]


def test_files_are_the_digits(members):
    """A decoded file, averaged back to 8 x 8, resembles its own source most of all 1,797, and has that one's label."""
    source = load_digits()
    train, _ = split_digits(source.target)
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(d))) for n, d in members.items() if n.startswith("train/")])
    assert decoded.shape == (1437, 32, 32) and decoded.dtype == np.uint8
    small = decoded.reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4)).reshape(-1, 64)
    # By correlation: the enlargement takes contrast from thin strokes.
    source_rows = source.images.reshape(-1, 64)
    correlation = _standardised(small) @ _standardised(source_rows).T
    rows = np.concatenate([train[source.target[train] == label] for label in range(10)])
    assert np.array_equal(correlation.argmax(1), rows)


def _standardised(rows):
    centred = rows - rows.mean(axis=1, keepdims=True)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def test_jpeg_keeps_the_pixels(members):
    images, labels = digit_images()
    train, _ = split_digits(labels)
    first = images[train[labels[train] == 7][0]]
    decoded = np.asarray(Image.open(io.BytesIO(members["train/7/7_00001.JPEG"])))
    assert np.abs(decoded.astype(int) - first).max() <= 3


def test_same_bytes_each_time(archive, tmp_path):
    write_digits(tmp_path / "again.tar.gz")
    assert (tmp_path / "again.tar.gz").read_bytes() == archive.read_bytes()
