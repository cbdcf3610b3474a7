"""The optimizer."""

from __future__ import annotations

import math

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from cswin.config.settings import Optimizer


class AdamW(nn.Cell):
    """AdamW (arXiv 1711.05101) equal to PyTorch's, with the moving average of the weights.

    It uses MindSpore's fused Adam kernel. The kernel's bias correction is switched off (powers of 0) and applied to the rate and
    epsilon instead: lr sqrt(1 - beta2^t) / (1 - beta1^t) and eps sqrt(1 - beta2^t). expm1 avoids cancellation at small t.

    Args:
        weights: the buffers of `cswin.model.weights`; only the first, the matrices, decays.
        settings: the stage's optimizer.
    """

    def __init__(self, weights: ParameterTuple, settings: Optimizer):
        super().__init__()
        self.weights = weights
        self.moment1 = weights.clone(prefix="moment1", init="zeros")
        self.moment2 = weights.clone(prefix="moment2", init="zeros")
        self.ema = weights.clone(prefix="ema", init="same")
        self.updates = Parameter(Tensor(0, ms.float32), name="updates", requires_grad=False)  # exact up to 2^24
        self.weight_decay, self.eps = settings.weight_decay, settings.eps
        self.beta1, self.beta2 = settings.beta1, settings.beta2
        self.log_beta1, self.log_beta2 = math.log(settings.beta1), math.log(settings.beta2)
        self.ema_decay = settings.ema_decay
        self.adam = ops.Adam()

    def construct(self, gradients, lr, finite=True):
        """Update weights, moments and EMA. If `finite` is false, the same operations change no bit.

        Args:
            gradients: of both buffers.
            lr: learning rate.
            finite: True if the caller skips bad steps itself; otherwise a bool tensor that selects the factors and rates.
        """
        t = self.updates + 1.0
        root = ops.sqrt(-ops.expm1(t * self.log_beta2))
        rate = lr * root / -ops.expm1(t * self.log_beta1)
        decay, beta1, beta2, ema_rate = 1.0 - lr * self.weight_decay, self.beta1, self.beta2, 1.0 - self.ema_decay
        if finite is not True:
            t = ops.select(finite, t, self.updates.value())
            rate, decay = ops.select(finite, rate, 0.0), ops.select(finite, decay, 1.0)
            beta1, beta2, ema_rate = (
                ops.select(finite, beta1, 1.0),
                ops.select(finite, beta2, 1.0),
                ops.select(finite, ema_rate, 0.0),
            )
            gradients = ops.select(finite, gradients[0], 0.0), ops.select(finite, gradients[1], 0.0)
        matrices = self.weights[0]
        done = ops.assign(matrices, matrices * decay)
        for i in range(2):
            weight, average = self.weights[i], self.ema[i]
            updated = self.adam(
                weight, self.moment1[i], self.moment2[i], 0.0, 0.0, rate, beta1, beta2, self.eps * root, gradients[i]
            )
            done = ops.depend(done, updated)
            done = ops.depend(done, ops.assign(average, average + ema_rate * (weight - average)))
        return ops.depend(done, ops.assign(self.updates, t))
