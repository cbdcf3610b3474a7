"""Evaluation that counts every image exactly once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
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
from cswin.predictions import Predictions


def gathered(predictions: Predictions, ranks: Ranks) -> Predictions:
    """The predictions of all ranks, in the order of the images, on every rank. Each rank has evaluated its `Ranks.part`."""
    return Predictions(**{field.name: ranks.gather(getattr(predictions, field.name)) for field in fields(predictions)})


def judge(predictor: Predictor, weight_sets: Mapping[str, Any], batches: Iterable[EvalBatch]) -> dict[str, Predictions]:
    """Predictions of each set of weights on the same batches, ordered by position.

    Args:
        predictor: the network.
        weight_sets: sets of weights by name; each set is weights by parameter name.
        batches: labelled images, each decoded once for all sets.
    """
    on_device = {which: predictor.on_device(weights) for which, weights in weight_sets.items()}
    nothing = np.zeros(0, np.int64)
    parts = {which: [] for which in weight_sets}
    for batch in batches:
        for which, weights in on_device.items():
            parts[which].append(_judge(predictor.logits(weights, batch.images), batch.labels, batch.positions))
    none = [_judge(np.zeros((0, predictor.classes)), nothing, nothing)]  # more ranks than images
    return {which: Predictions.join(found or none) for which, found in parts.items()}


def evaluate_checkpoint(
    checkpoint: Checkpoint, labelled: Labelled, preprocessing: Preprocessing, runtime: Runtime, ranks: Ranks, backend: Backend
) -> dict[str, Predictions]:
    """Predictions of a checkpoint's raw weights ("raw") and, if it has one, of their moving average ("ema").

    Args:
        checkpoint: what to evaluate.
        labelled: the images; the predictions are in its order.
        preprocessing: that of the checkpoint, possibly with another crop.
        runtime: batch size and workers.
        ranks: the processes that share the images; each one returns all predictions.
        backend: the started backend of the device.

    Raises:
        RuntimeError: if not every labelled image was evaluated exactly once.
    """
    task = EvalTask(EvalTransform(preprocessing))
    predictor = Predictor(checkpoint.record.architecture, runtime.eval_batch_size, backend=backend)
    predictor.compile_cached(runtime.caches_graphs)
    weight_sets = {"raw": checkpoint.weights} | ({} if checkpoint.ema is None else {"ema": checkpoint.ema})
    batches = eval_batches(labelled.rows(ranks.part), task, runtime)
    results = {which: gathered(found, ranks) for which, found in judge(predictor, weight_sets, batches).items()}
    for which, predictions in results.items():
        if labelled.images is not None and len(predictions.labels) != labelled.images:
            raise RuntimeError(f"{which}: {len(predictions.labels)} of {labelled.images} images were judged")
    return results


def _judge(logits: np.ndarray, labels: np.ndarray, positions: np.ndarray) -> Predictions:
    """Predictions of a batch; equal logits are ranked by class number."""
    logits = logits.astype(np.float64)
    top5 = np.argsort(-logits, axis=1, kind="stable")[:, :5].astype(np.int32)
    losses = logsumexp(logits, axis=1) - np.take_along_axis(logits, labels[:, None].astype(np.int64), 1)[:, 0]
    return Predictions(labels.astype(np.int32), top5, losses, positions.astype(np.int64))
