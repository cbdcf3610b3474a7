"""A simulated device that saturates: infinity becomes the largest float16, NaN becomes 0, and only a flag shows an overflow."""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from cswin.train.step import TrainStep

LARGEST = 65504.0  # of float16


class Flag(nn.Cell):
    """The device's overflow flag, which stays set until it is cleared. It replaces `cswin.train.step.OverflowFlag`."""

    def __init__(self):
        super().__init__()
        self.noted = Parameter(Tensor(0, ms.float32), name="noted", requires_grad=False)

    def clear(self):
        return ops.assign(self.noted, Tensor(0, ms.float32))

    def construct(self, gradients):
        return ops.depend(self.noted.value(), gradients)


class SaturatingStep(TrainStep):
    """The training step with gradients and loss as on such a device."""

    def differentiate(self, images, targets, drop_path):
        loss, gradients = self.value_and_grad(images, targets, drop_path, *self.network.cut(*self.weights))
        values = (loss, *self.network.cut.join(gradients))
        saturated, overflow = (), ops.zeros((), ms.float32)
        for value in values:
            finite = ops.isfinite(value)
            overflow = ops.maximum(overflow, 1.0 - finite.all().astype(ms.float32))
            number = ops.select(ops.isnan(value), ops.zeros_like(value), value)
            saturated += (ops.clip_by_value(number, Tensor(-LARGEST), Tensor(LARGEST)),)
        if self.flag is not None:
            saturated = ops.depend(saturated, ops.assign(self.flag.noted, ops.maximum(self.flag.noted.value(), overflow)))
        return saturated[0], saturated[1:]
