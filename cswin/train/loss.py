"""Cross-entropy with soft targets."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops


class SoftCrossEntropy(nn.Cell):
    """Mean over the batch of -sum(targets * log_softmax(logits)), in float32; the first of a tuple, as `cpu.SoftCrossEntropy`.

    Inputs: logits (B, classes), any float format; targets (B, classes), float32, whose rows sum to 1 (mixup, cutmix and label
    smoothing are in them).

    Written with logsumexp: MindSpore's LogSoftmax on the CPU is off by 3e-6, this by 4e-7.
    """

    def construct(self, logits, targets):
        logits = logits.astype(ms.float32)
        return ((ops.logsumexp(logits, -1) * targets.sum(-1) - (targets * logits).sum(-1)).mean(),)
