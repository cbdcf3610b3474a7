"""The update against 60 golden steps (float64): clipping, AdamW with two decay groups, EMA, the rate of each step."""

import json
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from networks import begin
from recipes import optimizer

from cswin.config.settings import Optimizer
from cswin.model.weights import Layout, Piece
from cswin.train.adamw import AdamW
from cswin.train.step import TrainStep

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "adamw_clip_ema.npz")
SHAPES = [tuple(shape) for shape in json.loads(str(GOLDEN["shapes"]))]


class Weights(nn.Cell):
    """A matrix and a bias, and nothing computed from them."""

    def __init__(self):
        super().__init__()
        self.layout, self.form = Layout([Piece({"matrix": SHAPES[0], "bias": SHAPES[1]})]), "CPU"


def begun(settings: Optimizer) -> TrainStep:
    step = TrainStep(Weights(), settings, GOLDEN["lr"].astype(np.float32))
    return begin(step, dict(zip(("matrix", "bias"), split(GOLDEN["w0"]), strict=True)))


def split(values: np.ndarray) -> list[np.ndarray]:
    rows = np.split(values.astype(np.float32), np.cumsum([np.prod(shape) for shape in SHAPES])[:-1])
    return [row.reshape(shape) for row, shape in zip(rows, SHAPES, strict=True)]


def compiled_update(step: TrainStep):
    @ms.jit  # a tuple of tensors as an argument would be a constant, compiled anew each time
    def update(loss, matrix, bias):
        return step.update(loss, (matrix.reshape(-1), bias))

    return lambda loss, gradients: update(Tensor(loss, ms.float32), *map(Tensor, split(gradients))).asnumpy()


def compiled_adam(adam: AdamW):
    @ms.jit
    def apply(matrix, bias, lr):
        return adam((matrix.reshape(-1), bias), lr)

    return lambda gradients, lr: apply(*map(Tensor, split(gradients)), Tensor(lr, ms.float32))


def flat(parameters) -> np.ndarray:
    return np.concatenate([p.asnumpy().ravel() for p in parameters])


def test_update_equals_60_golden_steps():
    assert (GOLDEN["grad_norm"] > 5).any() and (GOLDEN["grad_norm"] < 5).any()  # both sides of the clip
    step = begun(optimizer(weight_decay=0.05, clip_norm=5.0, ema_decay=0.99, amp_level="O0"))
    update = compiled_update(step)
    for i, gradients in enumerate(GOLDEN["grads"]):
        figures = dict(zip(TrainStep.OUTPUTS, update(1.5, gradients), strict=True))
        assert figures["loss"] == 1.5 and figures["skipped"] == 0
        assert figures["lr"] == np.float32(GOLDEN["lr"][i])
        np.testing.assert_allclose(figures["grad_norm"], GOLDEN["grad_norm"][i], rtol=1e-6)
        np.testing.assert_allclose(flat(step.weights), GOLDEN["params"][i], rtol=0, atol=1e-6)
        np.testing.assert_allclose(flat(step.optimizer.ema), GOLDEN["ema"][i], rtol=0, atol=1e-6)
    assert float(step.optimizer.updates) == float(step.schedule_step) == 60


def test_moments_and_bias_correction_equal_the_formula():
    """At rates, betas and an epsilon other than the golden ones; decay on the matrix alone."""
    beta1, beta2, eps, decay, lr = 0.8, 0.95, 1e-3, 0.3, 0.02
    adam = begun(optimizer(beta1=beta1, beta2=beta2, eps=eps, weight_decay=decay, ema_decay=0.9)).optimizer
    apply = compiled_adam(adam)
    decays = np.concatenate([np.full(np.prod(shape), decay * (len(shape) > 1)) for shape in SHAPES])
    w, m, v = GOLDEN["w0"].astype(np.float32).astype(float), 0.0, 0.0
    for t, g in enumerate(GOLDEN["grads"][:12], 1):
        apply(g, lr)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        w = w * (1 - lr * decays) - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
        np.testing.assert_allclose(flat(adam.weights), w, rtol=0, atol=1e-6)
    np.testing.assert_allclose(flat(adam.moment1), m, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(flat(adam.moment2), v, rtol=1e-5, atol=1e-6)


def test_ema_decays_alike_from_the_first_step_on():
    adam = begun(optimizer(ema_decay=0.5)).optimizer
    apply = compiled_adam(adam)
    ema = flat(adam.ema).astype(float)
    for g in GOLDEN["grads"][:12]:
        apply(g, 0.1)
        ema = 0.5 * ema + 0.5 * flat(adam.weights)
        np.testing.assert_allclose(flat(adam.ema), ema, rtol=0, atol=1e-6)


def test_without_clipping_gradients_go_in_whole():
    gradients = GOLDEN["grads"][np.argmax(GOLDEN["grad_norm"])]
    moments = {}
    for clip in (None, 5.0):
        step = begun(optimizer(clip_norm=clip, amp_level="O0"))
        compiled_update(step)(1.0, gradients)
        moments[clip] = flat(step.optimizer.moment1)
    norm = np.linalg.norm(gradients)
    assert norm > 5
    np.testing.assert_allclose(moments[None], 0.1 * gradients, rtol=1e-5)
    np.testing.assert_allclose(moments[5.0], 0.1 * gradients * 5 / norm, rtol=1e-5)
