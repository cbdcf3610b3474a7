"""The predictions for each image, and their file. Every figure of an evaluation can be recomputed from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cswin.atomic import atomic_path
from cswin.errors import UserError

REPORT_BATCH = 128  # the report counted whole batches only
WEIGHT_SETS = ("raw", "ema")


@dataclass(frozen=True)
class Predictions:
    """The predictions for a set of images.

    Attributes:
        labels: (n,) int32.
        top5: (n, k) int32, k = min(5, classes), most probable first.
        losses: (n,) float64, cross-entropy against the label.
        positions: (n,) int64, position of the image in the storage order of its split (converted dataset), or its number in
            reading order (folder, archive).
    """

    labels: np.ndarray
    top5: np.ndarray
    losses: np.ndarray
    positions: np.ndarray

    @classmethod
    def join(cls, parts: Sequence[Predictions]) -> Predictions:
        """All images of the parts, ordered by position."""
        columns = zip(*((p.labels, p.top5, p.losses, p.positions) for p in parts), strict=True)
        labels, top5, losses, positions = (np.concatenate(column) for column in columns)
        order = np.argsort(positions, kind="stable")
        return cls(labels[order], top5[order], losses[order], positions[order])

    @property
    def right1(self) -> np.ndarray:
        """(n,) bool: the most probable class is the label."""
        return self.top5[:, 0] == self.labels

    @property
    def right5(self) -> np.ndarray:
        """(n,) bool: the label is among the five most probable classes."""
        return (self.top5 == self.labels[:, None]).any(1)

    def figures(self) -> dict[str, Any]:
        """n, right1, right5 as integers; top1 and top5 in per cent; the mean loss in float64; top-1 in the report's counting."""
        n, whole = len(self.labels), len(self.labels) // REPORT_BATCH * REPORT_BATCH
        right1, right5 = int(self.right1.sum()), int(self.right5.sum())
        loss = float(self.losses.mean(dtype=np.float64))
        return {
            "n": n,
            "right1": right1,
            "right5": right5,
            "top1": 100 * right1 / n,
            "top5": 100 * right5 / n,
            "loss": loss if math.isfinite(loss) else None,  # JSON has no NaN
            "top1_whole_batches": 100 * int(self.right1[:whole].sum()) / whole if whole else None,
        }


class View(NamedTuple):
    """What is judged: a set of weights, on all images, or on those of some classes, which alone compete then.

    Attributes:
        weights: name of the set.
        classes: (k,) int64, ascending; None: all.
    """

    weights: str
    classes: np.ndarray | None = None


def save_predictions(path: Path, results: Mapping[str, Predictions], class_names: Sequence[str]) -> None:
    """Write predictions.npz: positions, labels, class_names, and for each set of weights `<set>_top5` and `<set>_losses`.

    Args:
        path: the file.
        results: predictions of the same images by "raw" and "ema".
        class_names: in the order of the labels.
    """
    any_set = next(iter(results.values()))
    small = np.uint16 if len(class_names) <= 1 << 16 else np.int32  # 1.7 MB for ImageNet, most of it losses
    arrays = {
        "positions": any_set.positions,
        "labels": any_set.labels.astype(small),
        "class_names": np.array(class_names, dtype=np.str_),
    }
    for which, predictions in results.items():
        if not np.array_equal(predictions.positions, any_set.positions):
            raise ValueError("the predictions of the two sets of weights are for different images")
        arrays |= {f"{which}_top5": predictions.top5.astype(small), f"{which}_losses": predictions.losses}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_predictions(path: Path) -> tuple[dict[str, Predictions], tuple[str, ...]]:
    """Predictions by set of weights, and the class names, from `save_predictions`'s file.

    Raises:
        UserError: if it is missing, damaged, or something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            labels, positions = file["labels"].astype(np.int32), file["positions"]
            results = {
                which: Predictions(labels, file[f"{which}_top5"].astype(np.int32), file[f"{which}_losses"], positions)
                for which in WEIGHT_SETS
                if f"{which}_top5" in file
            }
            return results, tuple(map(str, file["class_names"]))
    except Exception as error:  # numpy and zipfile raise many kinds, depending on where the damage is
        raise UserError(f"{path}: cannot be read as predictions ({error}); run `cswin evaluate` again") from error
