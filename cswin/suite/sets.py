"""What is measured on which images: the definitions of timm's validation."""

from __future__ import annotations

import functools
import gzip
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from cswin.errors import UserError
from cswin.predictions import Predictions

IMAGES = {
    "validation": 50_000,
    "imagenet_v2": 10_000,
    "imagenet_a": 7_500,
    "imagenet_r": 30_000,
    "sketch": 50_889,
}  # by dataset
CLASSES = {"imagenet_a": "a", "imagenet_r": "r"}  # datasets of some of the classes
_VALIDATION_FILE = re.compile(r"ILSVRC2012_val_(\d{8})")


@dataclass(frozen=True)
class TestSet:
    """What one row of the table is about.

    Attributes:
        name: of timm's results file, without `results-` and `.csv`.
        data: the dataset, a key of `IMAGES`.
        base: name of the set from which the differences are taken.
        classes: those of ImageNet-A or -R: images of other classes are left out, and these classes alone compete.
        real: right is what the several annotators of ReaL saw (arXiv 2006.07159); images in which they saw no class are left out.
    """

    __test__ = False  # pytest takes it for a test by its name

    name: str
    data: str
    base: str | None = None
    classes: str | None = None
    real: bool = False


SETS = (
    TestSet("imagenet", "validation"),
    TestSet("imagenet-real", "validation", base="imagenet", real=True),
    TestSet("imagenet-a-clean", "validation", classes="a"),
    TestSet("imagenet-r-clean", "validation", classes="r"),
    TestSet("imagenetv2-matched-frequency", "imagenet_v2", base="imagenet"),
    TestSet("imagenet-a", "imagenet_a", base="imagenet-a-clean", classes="a"),
    TestSet("imagenet-r", "imagenet_r", base="imagenet-r-clean", classes="r"),
    TestSet("sketch", "sketch", base="imagenet"),
)


@functools.cache
def class_indices(subset: str) -> np.ndarray:
    """(200,) int64, ascending: ImageNet's indices of the classes of ImageNet-A ("a") or -R ("r")."""
    return np.array(files("cswin.suite").joinpath(f"{subset}.txt").read_text().split(), np.int64)


@functools.cache
def real_labels() -> tuple[frozenset[int], ...]:
    """The classes that ReaL's annotators saw in each of the 50,000 validation images, in the order of their file names."""
    text = gzip.decompress(files("cswin.suite").joinpath("real.txt.gz").read_bytes()).decode()
    return tuple(frozenset(map(int, line.split())) for line in text.splitlines())


def validation_numbers(names: Mapping[int, str]) -> dict[int, int]:
    """The place of each validation image in `real_labels`, by its position.

    Args:
        names: of the files, by position.

    Raises:
        UserError: if a name is not one of ImageNet's.
    """
    numbers = {}
    for position, name in names.items():
        found = _VALIDATION_FILE.match(name)
        if not found or not 1 <= int(found[1]) <= len(real_labels()):
            raise UserError(f"{name!r} is not the name of a validation image of ImageNet (ILSVRC2012_val_00000001.JPEG)")
        numbers[position] = int(found[1]) - 1
    return numbers


def real_hits(predictions: Predictions, labels: Iterable[frozenset[int]]) -> tuple[np.ndarray, np.ndarray]:
    """For the images that have ReaL labels: whether the most probable class is among them, and whether one of the five is; bool.

    Args:
        predictions: of n images.
        labels: ReaL labels of these images.
    """
    found = [
        [guess in classes for guess in guesses]
        for guesses, classes in zip(predictions.top5.tolist(), labels, strict=True)
        if classes
    ]
    hits = np.array(found, bool).reshape(len(found), predictions.top5.shape[1])
    return hits[:, :1].any(1), hits.any(1)
