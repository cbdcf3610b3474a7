"""Fifty steps of a small CSWin against a float64 reference of everything but the network; gradient accumulation."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from networks import TwoLayers, begin, cut, named_gradients
from recipes import optimizer, schedule
from reference_training import ReferenceTraining

from cswin.config.settings import Optimizer
from cswin.data.augment.mixup import one_hot
from cswin.model.cswin import CSWin
from cswin.model.drop_path import drop_path_factors, drop_path_rates
from cswin.model.variants import Architecture
from cswin.model.weights import initial_weights
from cswin.train.schedule import learning_rates
from cswin.train.step import TrainStep

# Three stages with stripes, one with the full window; what a step compiles to is as large as it needs to be and no larger.
ARCH = Architecture(8, (1, 1, 1, 1), (1, 2, 1, 1), (2, 4, 8, 8), image_size=32, num_classes=5)
BATCH, STEPS = 8, 50
TOLERANCE = 2e-5  # measured: 4e-6 of the loss, 1e-6 of the weights


def start() -> dict[str, np.ndarray]:
    return initial_weights(ARCH, np.random.default_rng(3))


def fixed_batches(count: int = 4):
    """Images with something to learn, soft targets, drop path factors: the same few batches over and over."""
    rng = np.random.default_rng(7)
    batches = []
    for _ in range(count):
        labels = rng.integers(0, ARCH.num_classes, BATCH)
        images = rng.standard_normal((BATCH, 3, 32, 32)).astype(np.float32)
        images += labels[:, None, None, None].astype(np.float32)
        share = rng.beta(0.8, 0.8, (BATCH, 1)).astype(np.float32)
        targets = one_hot(labels, ARCH.num_classes, 0.1)
        targets = share * targets + (1 - share) * targets[::-1]
        batches.append((images, targets, drop_path_factors(drop_path_rates(0.2, ARCH.depth), BATCH, rng)))
    return batches


def reference_network():
    """Logits and pulled-back gradients of a second network, whose weights are arguments."""
    network = CSWin(ARCH)
    layout, parts = network.layout, 2 * len(network.layout.pieces)

    def weighted(images, factors, gradient, *weights):
        logits = network(images, weights, factors)
        return (logits * gradient).sum(), logits

    differentiate = ms.jit(ms.value_and_grad(weighted, tuple(range(3, 3 + parts)), None, has_aux=True))

    def call(weights, images, factors, gradient):
        named = dict(zip(layout.shapes, weights, strict=True))
        inputs = Tensor(images), Tensor(factors), Tensor(gradient.astype(np.float32))
        (_, logits), gradients = differentiate(*inputs, *cut(network, named))
        return logits.asnumpy(), list(named_gradients(network, gradients).values())

    def logits(weights, images, factors):
        return call(weights, images, factors, np.zeros((len(images), ARCH.num_classes)))[0]

    def pull_back(weights, images, factors, gradient):
        return call(weights, images, factors, gradient)[1]

    return logits, pull_back


@pytest.mark.slow
def test_fifty_steps_agree_with_the_float64_reference():
    settings = optimizer(weight_decay=0.05, clip_norm=1.0, ema_decay=0.9, amp_level="O0")
    phases = schedule(base_lr=2e-3, warmup_lr=1e-6, min_lr=1e-5, warmup_length=2, cool_length=1, cool_lr=1e-4)
    rates = learning_rates(0, STEPS, 5, phases, epochs=10)
    step = begin(TrainStep(CSWin(ARCH), settings, rates), start())
    logits, pull_back = reference_network()
    reference = ReferenceTraining(
        logits, pull_back, list(start().values()), base_lr=2e-3, warmup_lr=1e-6, min_lr=1e-5, warmup_steps=10, cosine_steps=45, cool_lr=1e-4,
        weight_decay=0.05, clip_norm=1.0, ema_decay=0.9,
    )  # fmt: skip
    batches, losses, norms = fixed_batches(), [], []
    for i in range(STEPS):
        batch = batches[i % len(batches)]
        ours = dict(zip(TrainStep.OUTPUTS, step(*map(Tensor, batch)).asnumpy(), strict=True))
        theirs = reference.step(*batch)
        assert ours["lr"] == np.float32(theirs["lr"])
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=TOLERANCE), i
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3), i
        losses.append(theirs["loss"])
        norms.append(theirs["grad_norm"])
    assert np.mean(losses[-4:]) < 0.6 * np.mean(losses[:4])  # it has learned, so agreement is not that of standing still
    assert min(norms) < 1.0 < max(norms)  # both sides of the clip
    for which, wanted in (("raw", reference.weights), ("ema", reference.ema)):
        for (name, ours), theirs in zip(step.named_weights(which).items(), wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE, err_msg=name)


def steps_of(accumulation: int, settings: Optimizer, batches: list, count: int = 6):
    """Figures and state after each of some steps."""
    network = TwoLayers(ms.float32)
    step = TrainStep(network, settings, np.full(count, 1e-3, np.float32), accumulation=accumulation)
    begin(step, network.start)
    for i in range(count):
        images, targets, factors = batches[i % len(batches)]
        parts = [np.arange(part, BATCH, accumulation) for part in range(accumulation)]  # need not be contiguous
        inputs = [tuple(map(Tensor, (images[p], targets[p], factors[:, p]))) for p in parts]
        for part in inputs[:-1]:
            step.accumulate(*part)
        figures = step(*inputs[-1]).asnumpy()
        # With the moments: they are linear in the gradients, so they show a wrong mean that Adam's division would hide.
        changed = (step.weights, step.optimizer.moment1, step.optimizer.moment2, step.optimizer.ema)
        yield figures, [p.asnumpy().copy() for group in changed for p in group]


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulated_micro_batches_equal_the_whole_batch(accumulation):
    """At one global batch, up to the order of float32 sums; several steps, so the sums are cleared in between."""
    # With Adam's usual eps, weights whose gradient is hardly more than rounding would move by the rate, either way.
    settings = optimizer(weight_decay=0.05, clip_norm=1.0, ema_decay=0.9, eps=1e-3, amp_level="O0")
    batches = fixed_batches()
    start = steps = None
    for ours, whole in zip(steps_of(accumulation, settings, batches), steps_of(1, settings, batches), strict=True):
        np.testing.assert_allclose(ours[0], whole[0], rtol=2e-5)
        for mine, theirs in zip(ours[1], whole[1], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)
        start, steps = start or whole, whole
    assert np.abs(steps[1][0] - start[1][0]).max() > 1e-3
