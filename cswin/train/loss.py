"""Cross-entropy with soft targets."""

from __future__ import annotations

import mindspore as ms
from mindspore import ops


def soft_cross_entropy(logits, targets):
    """Mean over the batch of -sum(targets * log_softmax(logits)), in float32.

    Args:
        logits: (B, classes), any float format.
        targets: (B, classes), float32; each row sums to 1 (mixup, cutmix and label smoothing are in them).

    Written with logsumexp: MindSpore's LogSoftmax on the CPU is off by 3e-6, this by 4e-7.
    """
    logits = logits.astype(ms.float32)
    return (ops.logsumexp(logits, -1) * targets.sum(-1) - (targets * logits).sum(-1)).mean()
