"""Evaluation that counts every image exactly once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops
from scipy.special import logsumexp

from cswin.checkpoint import Checkpoint
from cswin.config.settings import Runtime
from cswin.data.images.evaluation import EvalTransform
from cswin.data.images.preprocessing import Preprocessing
from cswin.data.loader.batches import EvalBatch, EvalTask, eval_batches
from cswin.data.loader.labelled import Labelled
from cswin.model.cswin import CSWin
from cswin.model.precision import Precision, precision
from cswin.model.variants import Architecture
from cswin.predictions import Predictions
from cswin.ranks import ALONE, Ranks


def gathered(predictions: Predictions, ranks: Ranks) -> Predictions:
    """The predictions of all ranks, each of which judged its `Ranks.part`, in the images' order and on every rank."""
    return Predictions(**{field.name: ranks.gather(getattr(predictions, field.name)) for field in fields(predictions)})


class Evaluator:
    """A network for evaluation, compiled once for one batch size.

    Args:
        arch, formats: as for `CSWin`.
        batch_size: of the compiled graph; the last batch is padded and the padding is not counted.
    """

    def __init__(self, arch: Architecture, formats: Precision, batch_size: int):
        self.network = CSWin(arch, formats)
        self.network.set_train(False)
        self.batch_size, self.classes = batch_size, arch.num_classes
        self.image_shape = (arch.in_channels, arch.image_size, arch.image_size)
        self.parameters = {p.name: p for p in self.network.get_parameters()}
        network = self.network

        @ms.jit
        def forward(images):
            return network(images)

        self.forward = forward

    def compile(self) -> None:
        """Compile now what `run` would at its first batch."""
        self.forward(ms.Tensor(np.zeros((self.batch_size, *self.image_shape), np.float32)))

    def run(self, weights: Mapping[str, Any], batches: Iterable[EvalBatch]) -> Predictions:
        """Predictions of the network with these weights (arrays or tensors by name), ordered by position."""
        for name, parameter in self.parameters.items():
            value = weights[name]
            # Into the parameter's own memory: a compiled graph does not notice new memory (set_data).
            ops.assign(parameter, value if isinstance(value, ms.Tensor) else ms.Tensor(value))
        parts = [_judge(self._logits(b.images), b.labels, b.positions) for b in batches]
        nothing = np.zeros(0, np.int64)
        return Predictions.join(parts or [_judge(np.zeros((0, self.classes)), nothing, nothing)])  # more ranks than images

    def _logits(self, images: np.ndarray) -> np.ndarray:
        """(n, classes) of up to batch_size images."""
        n = len(images)
        if n < self.batch_size:
            images = np.concatenate([images, np.zeros((self.batch_size - n, *images.shape[1:]), images.dtype)])
        return self.forward(ms.Tensor(images)).asnumpy()[:n]


def evaluate_checkpoint(
    checkpoint: Checkpoint, source: Labelled, preprocessing: Preprocessing, runtime: Runtime, ranks: Ranks = ALONE
) -> dict[str, Predictions]:
    """Predictions of a checkpoint's raw weights ("raw") and, where it has one, of their moving average ("ema").

    Args:
        checkpoint: what to evaluate.
        source: labelled images; the predictions are in its order.
        preprocessing: of the images; the checkpoint's own, or with another crop.
        runtime: batch size and workers.
        ranks: the processes that share the images; each returns the predictions of all.

    Raises:
        RuntimeError: if not every image of the source was judged exactly once.
    """
    task = EvalTask(EvalTransform(preprocessing))
    evaluator = Evaluator(checkpoint.record.architecture, precision("O0"), runtime.eval_batch_size)
    weight_sets = {"raw": checkpoint.weights, "ema": checkpoint.ema}
    results = {
        which: gathered(evaluator.run(weights, eval_batches(source.rows(ranks.part), task, runtime)), ranks)
        for which, weights in weight_sets.items()
        if weights is not None
    }
    for which, predictions in results.items():
        if source.images is not None and len(predictions.labels) != source.images:
            raise RuntimeError(f"{which}: {len(predictions.labels)} of {source.images} images were judged")
    return results


def _judge(logits: np.ndarray, labels: np.ndarray, positions: np.ndarray) -> Predictions:
    """Predictions of a batch; equal logits are ranked by class number."""
    logits = logits.astype(np.float64)
    top5 = np.argsort(-logits, axis=1, kind="stable")[:, :5].astype(np.int32)
    losses = logsumexp(logits, axis=1) - np.take_along_axis(logits, labels[:, None].astype(np.int64), 1)[:, 0]
    return Predictions(labels.astype(np.int32), top5, losses, positions.astype(np.int64))
