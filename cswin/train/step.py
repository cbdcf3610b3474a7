"""One optimizer step as one compiled graph: forward, backward, reduction, unscaling, clipping, AdamW, EMA.

All values that change (weights, moments, EMA, loss scale, counters) are parameters of the cell. So the host sends only the batch and
reads nothing back, and a saved state consists of the cell's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.ops.operations.math_ops import NPUClearFloatStatusV2, NPUGetFloatStatusV2

from cswin.config.settings import Optimizer
from cswin.distributed.backend import BACKENDS, Backend
from cswin.model import cpu
from cswin.model.cswin import CSWin
from cswin.model.weights import GROUPS
from cswin.train.adamw import AdamW
from cswin.train.loss import SoftCrossEntropy

PREFIXES = ("", "moment1.", "moment2.", "ema.")  # of a parameter's name in a state
CLIP_EPSILON = 1e-6  # as torch.nn.utils.clip_grad_norm_
SCALE_FACTOR = 2.0  # the loss scale is halved and doubled: a power of two changes no digit of a gradient


class TrainStep(nn.Cell):
    """A step on the global batch.

    Args:
        network: the model.
        settings: optimizer section of the stage.
        rates: learning rate of each update of the stage, float32; indexed by the number of updates, so a skipped step does not
            advance the schedule.
        devices: data-parallel workers; gradients are averaged over them. The weights are zero until `load` is called.
        accumulation: micro-batches whose gradients are averaged before the update.
        backend: of the device.

    Inputs of a call: images (B, C, H, W) float32, targets (B, classes) float32, drop path factors (2 * blocks, B) float32. With
    accumulation above 1, call `accumulate` for all micro-batches but the last. Output: float32 vector of `OUTPUTS`.

    A step whose loss or gradient is not finite changes nothing but the loss scale and its counters.
    """

    OUTPUTS = ("loss", "lr", "grad_norm", "loss_scale", "skipped", "skipped_in_a_row")

    def __init__(
        self,
        network: CSWin,
        settings: Optimizer,
        rates: np.ndarray,
        devices: int = 1,
        accumulation: int = 1,
        backend: Backend = BACKENDS["CPU"],  # noqa: B008 (frozen)
    ):
        super().__init__(auto_prefix=False)
        self.network, self.layout = network, network.layout
        self.weights = ParameterTuple(
            Parameter(Tensor(np.zeros(self.layout.size(group), np.float32)), name=group) for group in GROUPS
        )
        self.square_sum = cpu.SquareSum() if network.form == "CPU" else _SquareSum()
        self.loss = cpu.SoftCrossEntropy() if network.form == "CPU" else SoftCrossEntropy()
        self.optimizer = AdamW(self.weights, settings)
        self.rates = Parameter(
            Tensor(_padded(rates)), name="rates", requires_grad=False
        )  # no constant: stages share their graphs
        self.scaled = settings.amp_level != "O0" and settings.amp_dtype == "float16"
        start_scale = settings.loss_scale if self.scaled else 1.0
        self.loss_scale = _scalar(start_scale, "loss_scale")
        self.good_steps = _scalar(0.0, "good_steps")  # finite steps since the last change of the loss scale
        self.bad_steps = _scalar(0.0, "bad_steps")  # skipped steps in a row
        self.schedule_step = _scalar(0.0, "schedule_step")  # updates of this stage
        self.scale_window = settings.loss_scale_window
        self.clip_norm = settings.clip_norm
        self.accumulation = accumulation
        if accumulation > 1:
            self.loss_sum = _scalar(0.0, "accumulated.loss")
            self.sums = self.weights.clone(prefix="accumulated", init="zeros")
        self.all_reduce = ops.AllReduce() if devices > 1 else None
        self.devices = devices
        parts = 2 * len(self.layout.pieces)
        self.compiled_step = ms.jit(self.construct, **backend.jit_options)
        self.compiled_sum = ms.jit(self.add_gradients, **backend.jit_options)
        self.select = backend.skip_by == "select"
        self.flag, self.begun = OverflowFlag() if backend.saturates else None, False
        self.compiled_clear = ms.jit(self.clear_flag, **backend.jit_options)
        self.value_and_grad = ms.value_and_grad(self.scaled_loss, tuple(range(3, 3 + parts)), None)

    def scaled_loss(self, images, targets, drop_path, *weights):
        """The loss times the loss scale."""
        return self.loss(self.network(images, weights, drop_path), targets)[0] * self.loss_scale

    def differentiate(self, images, targets, drop_path):
        """The scaled loss and its gradient for both buffers."""
        loss, gradients = self.value_and_grad(images, targets, drop_path, *self.network.cut(*self.weights))
        return loss, self.network.cut.join(gradients)

    def __call__(self, images, targets, drop_path):
        self._begin()
        self.begun = False
        return self.compiled_step(images, targets, drop_path)

    def accumulate(self, images, targets, drop_path):
        """Add a micro-batch's gradients to the sums."""
        self._begin()
        return self.compiled_sum(images, targets, drop_path)

    def clear_flag(self):
        """The graph that clears the device's overflow flag."""
        return self.flag.clear()

    def _begin(self) -> None:
        """Before the first micro-batch of an update: clear the overflow flag of the previous update or of an evaluation."""
        if self.flag is not None and not self.begun:
            self.compiled_clear()
        self.begun = True

    def add_gradients(self, images, targets, drop_path):
        """The graph of `accumulate`."""
        loss, gradients = self.differentiate(images, targets, drop_path)
        done = ops.assign_add(self.loss_sum, loss)
        for i in range(2):
            done = ops.depend(done, ops.assign_add(self.sums[i], gradients[i]))
        return done

    def construct(self, images, targets, drop_path):
        loss, gradients = self.differentiate(images, targets, drop_path)
        if self.accumulation > 1:
            loss, gradients = self.take_sums(loss, gradients)
        return self.update(loss, gradients)

    def take_sums(self, loss, gradients):
        """The sums including the last micro-batch; clears the accumulators."""
        total_loss, total = loss + self.loss_sum, ()
        done = ops.assign(self.loss_sum, ops.depend(ops.zeros((), ms.float32), total_loss))
        for i in range(2):
            gradient = gradients[i] + self.sums[i]
            total += (gradient,)
            done = ops.depend(done, ops.assign(self.sums[i], ops.depend(ops.zeros_like(self.sums[i]), gradient)))
        return ops.depend(total_loss, done), total

    def update(self, loss, gradients):
        """Reduce over devices, unscale, clip, and apply the gradients if loss and norm are finite."""
        if self.devices > 1:
            gradients = (self.all_reduce(gradients[0]), self.all_reduce(gradients[1]))
            loss = self.all_reduce(loss)
        scale = self.loss_scale.value()
        unscale = 1.0 / (scale * (self.accumulation * self.devices))
        loss = loss * unscale
        norm = ops.sqrt(self.square_sum(gradients[0]) + self.square_sum(gradients[1])) * unscale
        finite = ops.logical_and(ops.isfinite(norm), ops.isfinite(loss))
        if self.flag is not None:
            overflow = self.flag(gradients)
            if self.devices > 1:  # infinity spreads to all ranks through the reduction, a saturated number does not
                overflow = self.all_reduce(overflow)
            finite = ops.logical_and(finite, overflow == 0)
        lr = self.rates[ops.minimum(self.schedule_step, float(self.rates.shape[0] - 1)).astype(ms.int32)]
        factor = unscale
        if self.clip_norm is not None:
            factor = unscale * ops.minimum(self.clip_norm / (norm + CLIP_EPSILON), ops.ones((), ms.float32))
        gradients = gradients[0] * factor, gradients[1] * factor
        if self.select:
            self.optimizer(gradients, lr, finite)
            ops.assign_add(self.schedule_step, finite.astype(ms.float32))
        elif finite:
            self.optimizer(gradients, lr)
            ops.assign_add(self.schedule_step, ops.ones((), ms.float32))
        bad = self.count_step(finite)
        skipped = 1.0 - finite.astype(ms.float32)
        return ops.stack((loss, lr, norm, scale, skipped, bad))

    def arrays(self) -> dict[str, np.ndarray]:
        """Copies of all arrays of a state by name: weights, `moment1.`, `moment2.`, `ema.`, loss scale and counters."""
        values = {p.name: p.asnumpy().copy() for p in self.state}
        named = {}
        for prefix in PREFIXES:
            buffers = {group: values.pop(prefix + group) for group in GROUPS}
            named |= {prefix + name: array for name, array in self.layout.unpack(buffers).items()}
        return named | values

    def load(self, arrays: Mapping[str, np.ndarray], running: bool = False) -> None:
        """Inverse of `arrays`.

        Args:
            arrays: all arrays of a state by name.
            running: whether a step was taken before. A compiled graph does not notice new memory, so the values are copied into its.
        """
        values = dict(arrays)
        for prefix in PREFIXES:
            buffers = self.layout.pack({name: arrays[prefix + name] for name in self.layout.shapes})
            values |= {prefix + group: buffer for group, buffer in buffers.items()}
        for parameter in self.state:
            value = Tensor(values[parameter.name])
            ops.assign(parameter, value) if running else parameter.set_data(value)

    def named_weights(self, which: str) -> dict[str, np.ndarray]:
        """Copies of the weights (`raw`) or of their moving average (`ema`) by parameter name."""
        parameters = self.weights if which == "raw" else self.optimizer.ema
        return self.layout.unpack({group: p.asnumpy().copy() for group, p in zip(GROUPS, parameters, strict=True)})

    @property
    def state(self) -> list[Parameter]:
        """The parameters of a state, in the buffers of `weights.Layout`."""
        return [p for p in self.get_parameters() if p.name != "rates" and not p.name.startswith("accumulated")]

    def count_step(self, finite):
        """Update the loss scale and the counters; returns the number of bad steps in a row."""
        good = ops.select(finite, self.good_steps + 1.0, ops.zeros((), ms.float32))
        bad = ops.select(finite, ops.zeros((), ms.float32), self.bad_steps + 1.0)
        if self.scaled:
            grow = good >= self.scale_window
            smaller = ops.maximum(self.loss_scale / SCALE_FACTOR, ops.ones((), ms.float32))
            scale = ops.select(finite, self.loss_scale.value(), smaller)
            scale = ops.select(grow, scale * SCALE_FACTOR, scale)
            good = ops.select(grow, ops.zeros((), ms.float32), good)
            ops.assign(self.loss_scale, scale)
        ops.assign(self.good_steps, good)
        ops.assign(self.bad_steps, bad)
        return bad


class OverflowFlag(nn.Cell):
    """The overflow flag of a device that saturates (the first Ascend 910). It stays set until it is cleared.

    It is used as in MindSpore's own `nn.TrainOneStepWithLossScaleCell`.
    """

    def __init__(self):
        super().__init__()
        self.nothing = Tensor([0] * 8, ms.int32)
        self.clear_status, self.get_status = NPUClearFloatStatusV2(), NPUGetFloatStatusV2()

    def clear(self):
        """Clear the flag."""
        return self.clear_status(self.nothing)

    def construct(self, gradients):
        """1 if an operation overflowed before or while these gradients were computed, else 0; float32."""
        status = self.get_status(ops.depend(self.nothing, gradients))
        return (status.sum() != 0).astype(ms.float32)


class _SquareSum(nn.Cell):
    def construct(self, x):
        return ops.square(x).sum()


def _padded(rates: np.ndarray) -> np.ndarray:
    """The rates and, to one of few lengths, the last one again and again."""
    return np.pad(rates, (0, max(1024, 1 << (len(rates) - 1).bit_length()) - len(rates)), mode="edge")


def _scalar(value: float, name: str) -> Parameter:
    return Parameter(Tensor(value, ms.float32), name=name, requires_grad=False)
