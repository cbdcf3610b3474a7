"""What the network said of each validation image, read back from a stage's predictions.npz."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cswin.errors import UserError
from cswin.report.table import wilson


@dataclass(frozen=True)
class StagePredictions:
    """Predictions of one set of weights.

    Attributes:
        which: `raw` or `ema`.
        labels: (n,) int32, by position in the dataset.
        predicted: (n,) int32, the most probable class.
        label_probability: (n,) float64, 0 to 1, what the network gave the label.
    """

    which: str
    labels: np.ndarray
    predicted: np.ndarray
    label_probability: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """(n,) bool."""
        return self.predicted == self.labels


def load_predictions(path: Path, which: str) -> StagePredictions:
    """Predictions of the weights `which`; of the raw ones where there is no moving average.

    Raises:
        UserError: if the file is missing or is none of predictions.
    """
    try:
        with np.load(path) as arrays:
            which = which if f"{which}_top5" in arrays else "raw"
            labels, top5, losses = arrays["labels"], arrays[f"{which}_top5"], arrays[f"{which}_losses"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: holds no predictions ({error}); `cswin evaluate --predictions` writes them") from None
    return StagePredictions(which, labels, top5[:, 0], np.exp(-losses))


def class_accuracy(predictions: StagePredictions, class_names: tuple[str, ...]) -> pd.DataFrame:
    """Accuracy by class, in the order of the labels; classes without an image are left out.

    Returns:
        Columns label, name, n, right, top1 (per cent), low and high (95 % Wilson interval), mistaken (the class that its images
        were most often taken for, by name; empty where none was), times (how often).
    """
    rows = []
    for label in np.unique(predictions.labels):
        mine = predictions.labels == label
        wrong = predictions.predicted[mine & ~predictions.right]
        n, right = int(mine.sum()), int((mine & predictions.right).sum())
        classes, counts = np.unique(wrong, return_counts=True)
        worst = int(counts.argmax()) if len(counts) else None
        mistaken = ("", 0) if worst is None else (class_names[classes[worst]], int(counts[worst]))
        rows.append((int(label), class_names[label], n, right, 100 * right / n, *wilson(right, n), *mistaken))
    return pd.DataFrame(rows, columns=["label", "name", "n", "right", "top1", "low", "high", "mistaken", "times"])
