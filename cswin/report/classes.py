"""Accuracy by class, and the most frequent mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cswin.predictions import Predictions
from cswin.report.statistics import wilson

WORST, TAKEN_FOR = 20, 5  # number of classes in the list of confusions, and of wrong classes listed for each


def per_class(results: Mapping[str, Predictions], class_names: Sequence[str]) -> pd.DataFrame:
    """One row per class that has images: class, n, and right1_<set>, top1_<set> (per cent) for each set of weights.

    Args:
        results: predictions of the same images by set of weights.
        class_names: in the order of the labels.
    """
    labels = next(iter(results.values())).labels
    counts = np.bincount(labels, minlength=len(class_names))
    columns = {"class": list(class_names), "n": counts}
    for which, predictions in results.items():
        columns[f"right1_{which}"] = np.bincount(labels, weights=predictions.right1, minlength=len(class_names)).astype(int)
    table = pd.DataFrame(columns)[counts > 0]
    for which in results:
        table[f"top1_{which}"] = (100 * table[f"right1_{which}"] / table["n"]).round(4)
    return table


def accuracy_with_mistakes(predictions: Predictions, class_names: Sequence[str]) -> pd.DataFrame:
    """One row per class that has images, in the order of the labels.

    Returns:
        Columns name, n, right, top1 (per cent), low and high (95 % Wilson interval), mistaken (name of the wrong class that was
        predicted most often; empty if none was), times (how often).
    """
    labels, first, rows = predictions.labels, predictions.top5[:, 0], []
    for label in np.unique(labels):
        mine = labels == label
        n, right = int(mine.sum()), int((first[mine] == label).sum())
        others = np.bincount(first[mine & (first != label)], minlength=len(class_names))
        times = int(others.max())
        mistaken = class_names[int(others.argmax())] if times else ""
        rows.append((class_names[label], n, right, 100 * right / n, *wilson(right, n), mistaken, times))
    return pd.DataFrame(rows, columns=["name", "n", "right", "top1", "low", "high", "mistaken", "times"])


def confusions(
    results: Mapping[str, Predictions], class_names: Sequence[str], worst: int = WORST, taken_for: int = TAKEN_FOR
) -> pd.DataFrame:
    """The classes with the lowest top-1, and the wrong classes predicted most often for them, for each set of weights.

    One row per pair: weights, rank (1: the worst class), class, n, top1, taken_for, images, share (per cent of the class). A class
    without errors is not listed; equal classes are in the order of the labels.
    """
    rows = []
    for which, predictions in results.items():
        labels, first = predictions.labels, predictions.top5[:, 0]
        counts = np.bincount(labels, minlength=len(class_names))
        wrong = np.bincount(labels, weights=first != labels, minlength=len(class_names))
        share = np.divide(wrong, counts, out=np.zeros(len(class_names)), where=counts > 0)
        order = [label for label in np.argsort(-share, kind="stable")[:worst] if wrong[label]]
        for rank, label in enumerate(order, 1):
            n = int(counts[label])
            others = np.bincount(first[(labels == label) & (first != label)], minlength=len(class_names))
            for other in np.argsort(-others, kind="stable")[:taken_for]:
                if others[other]:
                    rows.append(
                        {
                            "weights": which,
                            "rank": rank,
                            "class": class_names[label],
                            "n": n,
                            "top1": round(100 * (n - int(wrong[label])) / n, 4),
                            "taken_for": class_names[other],
                            "images": int(others[other]),
                            "share": round(100 * int(others[other]) / n, 4),
                        }
                    )
    return pd.DataFrame(rows, columns=["weights", "rank", "class", "n", "top1", "taken_for", "images", "share"])
