"""Evaluation that counts every image exactly once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops
from scipy.special import logsumexp

from cswin.checkpoint import Checkpoint, Preprocessing
from cswin.config.settings import Runtime
from cswin.data.loader import EvalTask, eval_batches
from cswin.data.sources import Source
from cswin.data.transforms import EvalTransform
from cswin.model.cswin import CSWin
from cswin.model.precision import Precision, precision
from cswin.model.variants import Architecture
from cswin.ranks import ALONE, Ranks

REPORT_BATCH = 128  # the report counted whole batches only


@dataclass(frozen=True)
class Predictions:
    """What a network said of each image.

    Attributes:
        labels: (n,) int32.
        top5: (n, k) int32, k = min(5, classes), most probable first.
        losses: (n,) float64, cross-entropy against the label.
    """

    labels: np.ndarray
    top5: np.ndarray
    losses: np.ndarray

    def figures(self) -> dict[str, Any]:
        """n, right1, right5 as integers; top1 and top5 in per cent; the mean loss in float64; the report's own counting."""
        right1, right5 = self.right1, (self.top5 == self.labels[:, None]).any(1)
        n, whole = len(self.labels), len(self.labels) // REPORT_BATCH * REPORT_BATCH
        return {
            "n": n,
            "right1": int(right1.sum()),
            "right5": int(right5.sum()),
            "top1": 100 * int(right1.sum()) / n,
            "top5": 100 * int(right5.sum()) / n,
            "loss": float(self.losses.mean()),
            "top1_whole_batches": 100 * int(right1[:whole].sum()) / whole if whole else None,
        }

    @property
    def right1(self) -> np.ndarray:
        """(n,) bool: the most probable class is the label."""
        return self.top5[:, 0] == self.labels


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

    def run(self, weights: Mapping[str, Any], batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> Predictions:
        """Predictions of the network with these weights (arrays or tensors by name) on (images, labels) batches."""
        for name, parameter in self.parameters.items():
            value = weights[name]
            # Into the parameter's own memory: a compiled graph does not notice new memory (set_data).
            ops.assign(parameter, value if isinstance(value, ms.Tensor) else ms.Tensor(value))
        parts = [_judge(logits, labels) for logits, labels in self._logits(batches)]
        parts = parts or [_judge(np.zeros((0, self.classes)), np.zeros(0))]  # more ranks than images
        return Predictions(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _logits(self, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for images, labels in batches:
            n = len(images)
            if n < self.batch_size:
                images = np.concatenate([images, np.zeros((self.batch_size - n, *images.shape[1:]), images.dtype)])
            yield self.forward(ms.Tensor(images)).asnumpy()[:n], labels


def evaluate_checkpoint(
    checkpoint: Checkpoint, source: Source, preprocessing: Preprocessing, runtime: Runtime, ranks: Ranks = ALONE
) -> dict[str, Predictions]:
    """Predictions of a checkpoint's raw weights ("raw") and, where it has one, of their moving average ("ema").

    Args:
        checkpoint: what to evaluate.
        source: labelled images; the predictions are in its order.
        preprocessing: of the images; the checkpoint's own, or with another crop.
        runtime: batch size and workers.
        ranks: the processes that share the images; each returns the predictions of all.
    """
    transform = EvalTransform(
        preprocessing.image_size,
        crop_ratio=preprocessing.crop_ratio,
        channels=preprocessing.channels,
        mean=preprocessing.mean,
        std=preprocessing.std,
        interpolation=preprocessing.interpolation,
    )
    evaluator = Evaluator(checkpoint.record.architecture, precision("O0"), runtime.eval_batch_size)
    weight_sets = {"raw": checkpoint.weights, "ema": checkpoint.ema}
    return {
        which: gathered(evaluator.run(weights, eval_batches(source.rows(ranks.part), EvalTask(transform), runtime)), ranks)
        for which, weights in weight_sets.items()
        if weights is not None
    }


def _judge(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """labels, top5, losses of a batch; equal logits are ranked by class number."""
    logits = logits.astype(np.float64)
    top5 = np.argsort(-logits, axis=1, kind="stable")[:, :5].astype(np.int32)
    losses = logsumexp(logits, axis=1) - np.take_along_axis(logits, labels[:, None].astype(np.int64), 1)[:, 0]
    return labels.astype(np.int32), top5, losses
