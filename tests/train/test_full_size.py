"""The ImageNet networks at their real size through the project's own training step.

T and S against three steps of the authors' network with PyTorch's AdamW (`data/train_<arch>.npz`); the large ones: they train, and
go on from a saved state with the same bits. The norm is compared with a float64 sum over PyTorch's gradients (`grad_norm_float64`):
PyTorch's own norm on the CPU adds in eight float32 lanes and is 1.3e-5 to 2.2e-5 too small at these sizes.
"""

import math
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from alone import alone
from networks import begin
from recipes import optimizer

from cswin.model.cswin import CSWin
from cswin.model.precision import precision
from cswin.model.variants import variant
from cswin.model.weights import initial_weights
from cswin.run.states import StateFolder
from cswin.train.state import State
from cswin.train.step import TrainStep

DATA = Path(__file__).parents[1] / "golden"
LARGE = [
    "cswin_96_24322_base_224",
    "cswin_96_24322_base_384",
    "cswin_144_24322_large_224",
    "cswin_144_24322_large_384",
]


def training_step(name: str, rates: np.ndarray, level: str = "O0", **settings) -> TrainStep:
    network = CSWin(variant(name), precision(level))
    step = TrainStep(
        network, optimizer(amp_level=level, weight_decay=0.05, clip_norm=5.0, **settings), rates.astype(np.float32)
    )
    return begin(step, initial_weights(variant(name), np.random.default_rng(0)))


def batches(name: str, size: int, count: int):
    """The golden runs' inputs; no drop path."""
    arch, rng = variant(name), np.random.default_rng(1)
    factors = np.ones((2 * sum(arch.depth), size), np.float32)
    for _ in range(count):
        images = rng.standard_normal((size, 3, arch.image_size, arch.image_size), dtype=np.float32)
        targets = rng.dirichlet(np.ones(arch.num_classes), size).astype(np.float32)
        yield tuple(map(ms.Tensor, (images, targets, factors)))


def run(step: TrainStep, batch) -> dict[str, float]:
    return dict(zip(TrainStep.OUTPUTS, map(float, step(*batch).asnumpy()), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cswin_64_12211_tiny_224", "cswin_64_24322_small_224_report"])
def test_three_steps_equal_the_authors_network_under_pytorch(name):
    golden = np.load(DATA / f"train_{name}.npz")
    start = initial_weights(variant(name), np.random.default_rng(0))
    for row, parameter in enumerate(golden["names"]):
        np.testing.assert_array_equal(start[parameter].ravel()[golden["i"][row]], golden["init"][row], err_msg=parameter)
    step = training_step(name, golden["lr"], ema_decay=0.99)
    # Seen: 3e-7 at most in the first two steps; 1.5e-6 in the third of S, whose weights went through two updates of their own.
    for i, (batch, tolerance) in enumerate(zip(batches(name, 2, 3), (1e-6, 1e-6, 2e-6), strict=True)):
        figures = run(step, batch)
        assert figures["skipped"] == 0
        assert figures["loss"] == pytest.approx(golden["loss"][i], rel=1e-6)
        assert figures["grad_norm"] == pytest.approx(golden["grad_norm_float64"][i], rel=tolerance)
    for which, key, tolerance in (("raw", "w", 1e-5), ("ema", "e", 1e-6)):
        weights = step.named_weights(which)
        for row, parameter in enumerate(golden["names"]):
            ours = weights[parameter].ravel()[golden["i"][row]]
            np.testing.assert_allclose(ours, golden[key][row], rtol=0, atol=tolerance, err_msg=parameter)


@pytest.mark.slow
def test_tiny_in_float16_takes_a_step_and_skips_an_overflow():
    step = training_step("cswin_64_12211_tiny_224", np.full(2, 1e-3), "O1", loss_scale=1024.0, ema_decay=0.99)
    first, second = batches("cswin_64_12211_tiny_224", 2, 2)
    figures = run(step, first)
    assert figures["skipped"] == 0 and math.isfinite(figures["loss"]) and math.isfinite(figures["grad_norm"])
    ms.ops.assign(step.loss_scale, ms.Tensor(2.0**40, ms.float32))  # scaled gradients leave float16
    before = step.arrays()
    figures = run(step, second)
    after = step.arrays()
    assert figures["skipped"] == 1 and after["loss_scale"] == 2.0**39
    for name in before.keys() - {"loss_scale", "good_steps", "bad_steps"}:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.large
@pytest.mark.parametrize("name", LARGE)
def test_large_networks_train_and_go_on_from_a_state_to_the_bit(name, tmp_path):
    """In two processes, as an interrupted stage does: one network of L takes 10 GB."""
    wanted = alone(train, name, tmp_path / "state")
    assert math.isfinite(wanted["loss"]) and wanted["skipped"] == 0
    assert alone(go_on, name, tmp_path / "state") == wanted


def train(name: str, folder: Path) -> dict[str, float]:
    """Two steps, with a state saved between them; the second one's figures."""
    first, second = batches(name, 1, 2)
    step = training_step(name, np.full(2, 1e-3))
    start = step.arrays()
    assert math.isfinite(run(step, first)["loss"])
    saved = step.arrays()
    for parameter in step.layout.shapes:
        assert np.isfinite(saved[parameter]).all() and not np.array_equal(saved[parameter], start[parameter]), parameter
    StateFolder(folder, keep=2, say=print).save(State(1, saved, {}), background=False)
    return run(step, second)


def go_on(name: str, folder: Path) -> dict[str, float]:
    """The second step, from the saved state."""
    _, second = batches(name, 1, 2)
    step = training_step(name, np.full(2, 1e-3))
    step.load(StateFolder(folder, keep=2, say=print).load().arrays)
    return run(step, second)
