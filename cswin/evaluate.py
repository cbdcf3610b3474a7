"""Evaluation that counts every image exactly once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.special import logsumexp

from cswin.checkpoint import Checkpoint
from cswin.config.runtime import Runtime
from cswin.data.images.evaluation import EvalTransform
from cswin.data.images.preprocessing import Preprocessing
from cswin.data.loader.batches import EvalBatch, EvalTask, eval_batches
from cswin.data.loader.labelled import Labelled
from cswin.distributed.backend import Backend
from cswin.distributed.ranks import Ranks
from cswin.inference import Predictor
from cswin.predictions import Predictions, View


def gathered(predictions: Predictions, ranks: Ranks) -> Predictions:
    """The predictions of all ranks, in the order of the images, on every rank. Each rank has evaluated its `Ranks.part`."""
    return Predictions(**{field.name: ranks.gather(getattr(predictions, field.name)) for field in fields(predictions)})


def judge(
    predictor: Predictor,
    weight_sets: Mapping[str, Any],
    batches: Iterable[EvalBatch],
    views: Mapping[str, View] = MappingProxyType({}),
) -> dict[str, Predictions]:
    """Predictions of each view on the same batches, ordered by position.

    Args:
        predictor: the network.
        weight_sets: sets of weights by name; each set is weights by parameter name.
        batches: labelled images, each decoded once, and classified once for each set of weights.
        views: by name (default: each set of weights, under its name).
    """
    views = views or {which: View(which) for which in weight_sets}
    on_device = {which: predictor.on_device(weights) for which, weights in weight_sets.items()}
    nothing = np.zeros(0, np.int64)
    parts = {name: [] for name in views}
    for batch in batches:
        logits = {which: predictor.logits(weights, batch.images) for which, weights in on_device.items()}
        for name, view in views.items():
            parts[name].append(judged(logits[view.weights], batch.labels, batch.positions, view.classes))
    none = [judged(np.zeros((0, predictor.classes)), nothing, nothing)]  # more ranks than images
    return {name: Predictions.join(found or none) for name, found in parts.items()}


class Evaluator:
    """A checkpoint's network, compiled once for any number of datasets.

    Args:
        checkpoint: what to evaluate.
        preprocessing: that of the checkpoint, possibly with another crop.
        runtime: batch size and workers.
        ranks: the processes that share the images; each one returns all predictions.
        backend: the started backend of the device.
    """

    def __init__(self, checkpoint: Checkpoint, preprocessing: Preprocessing, runtime: Runtime, ranks: Ranks, backend: Backend):
        self.preprocessing, self.runtime, self.ranks, self.backend = preprocessing, runtime, ranks, backend
        self.task = EvalTask(EvalTransform(preprocessing))
        self.predictor = Predictor(checkpoint.record.architecture, runtime.eval_batch_size, backend=backend)
        self.predictor.compile_cached(runtime.caches_graphs)
        self.weights = {"raw": checkpoint.weights} | ({} if checkpoint.ema is None else {"ema": checkpoint.ema})

    def __call__(self, labelled: Labelled, views: Mapping[str, View] = MappingProxyType({})) -> dict[str, Predictions]:
        """Predictions in the order of the images.

        Args:
            labelled: the images.
            views: by name (default: the raw weights, "raw", and, if there is one, their moving average, "ema").

        Raises:
            RuntimeError: if not every labelled image was evaluated exactly once.
        """
        used = {view.weights for view in views.values()} or self.weights
        weight_sets = {which: weights for which, weights in self.weights.items() if which in used}
        batches = eval_batches(labelled.rows(self.ranks.part), self.task, self.runtime)
        found = judge(self.predictor, weight_sets, batches, views)
        results = {name: gathered(predictions, self.ranks) for name, predictions in found.items()}
        for name, predictions in results.items():
            whole = name not in views or views[name].classes is None
            if whole and labelled.images is not None and len(predictions.labels) != labelled.images:
                raise RuntimeError(f"{name}: {len(predictions.labels)} of {labelled.images} images were judged")
        return results


def judged(logits: np.ndarray, labels: np.ndarray, positions: np.ndarray, classes: np.ndarray | None = None) -> Predictions:
    """Predictions of a batch; equal logits are ranked by class number.

    Args:
        logits: (n, classes) float32.
        labels, positions: (n,) int64.
        classes: see `View`.
    """
    logits = logits.astype(np.float64)
    if classes is not None:
        kept = np.isin(labels, classes)
        within = judged(logits[kept][:, classes], np.searchsorted(classes, labels[kept]), positions[kept])
        return replace(within, labels=classes[within.labels].astype(np.int32), top5=classes[within.top5].astype(np.int32))
    top5 = np.argsort(-logits, axis=1, kind="stable")[:, :5].astype(np.int32)
    losses = logsumexp(logits, axis=1) - np.take_along_axis(logits, labels[:, None].astype(np.int64), 1)[:, 0]
    return Predictions(labels.astype(np.int32), top5, losses, positions.astype(np.int64))
