"""Low precision: which operations run in which format, the loss scale, steps that overflow, and when training gives up."""

import dataclasses
import math

import mindspore as ms
import numpy as np
import pytest
import recipes
from converted import converted
from image_trees import small_files
from mindspore import Tensor, ops
from networks import TwoLayers, begin, initialised
from saturating import Flag

from cswin.config.resolve import dump
from cswin.config.settings import Optimizer
from cswin.data.augment.mixup import one_hot
from cswin.data.loader.batches import TrainLoader
from cswin.distributed.backend import BACKENDS
from cswin.distributed.ranks import ALONE
from cswin.distributed.stopping import Stopping
from cswin.errors import UserError
from cswin.model.cswin import CSWin
from cswin.model.drop_path import drop_path_factors, drop_path_rates
from cswin.model.precision import precision
from cswin.model.variants import VARIANTS, Architecture
from cswin.model.weights import initial_weights
from cswin.progress import Console
from cswin.run.history import read_history
from cswin.run.stage import StageFiles
from cswin.run.stage_run import run_stage
from cswin.run.states import StateFolder
from cswin.train.step import TrainStep

ARCH = Architecture(8, (1, 1, 1, 1), (1, 2, 1, 1), (2, 4, 8, 8), image_size=32, num_classes=5)
BATCH = 4


def two_layers(settings: Optimizer, **options) -> TrainStep:
    """Products in float16, so a gradient above 65504 overflows."""
    network = TwoLayers(ms.float16)
    return begin(TrainStep(network, settings, RATES, **options), network.start)


def batch(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((BATCH, 3, 32, 32)).astype(np.float32)
    factors = drop_path_factors(drop_path_rates(0.2, ARCH.depth), BATCH, rng)
    return images, one_hot(rng.integers(0, 5, BATCH), 5, 0.1), factors


def run(step: TrainStep, *arrays: np.ndarray) -> dict[str, float]:
    return dict(zip(TrainStep.OUTPUTS, map(float, step(*map(Tensor, arrays)).asnumpy()), strict=True))


COUNTERS = {"loss_scale", "good_steps", "bad_steps", "noted"}  # all that a skipped step may move; and the test's own flag


def state(step: TrainStep) -> dict[str, bytes]:
    """Weights, moments, EMA, number of updates, position in the schedule."""
    sums = {p.name: p.asnumpy() for p in step.get_parameters() if p.name.startswith("accumulated")}
    return {name: array.tobytes() for name, array in (step.arrays() | sums).items() if name not in COUNTERS}


RATES = np.linspace(1e-3, 2e-3, 64).astype(np.float32)


def check_scaled_steps(step: TrainStep, count: int, start: float, window: int) -> list[dict[str, float]]:
    """Train, and follow loss scale, counters and state by their rules."""
    scale, good, bad, updates, figures = start, 0, 0, 0, []
    for i in range(count):
        before = state(step)
        figures.append(now := run(step, *batch(i % 3)))
        assert now["loss_scale"] == scale
        assert now["lr"] == RATES[updates]  # the schedule waits for skipped steps
        assert float(step.optimizer.updates) == float(step.schedule_step) == updates + 1 - now["skipped"]
        if now["skipped"]:
            assert not math.isfinite(now["grad_norm"])
            assert state(step) == before
            scale, good, bad = max(1.0, scale / 2), 0, bad + 1
        else:
            changed = {name for name, value in state(step).items() if value != before[name]}
            assert {"schedule_step", "updates"} <= changed
            assert all(n in changed and f"ema.{n}" in changed for n in step.layout.shapes if "weight" in n)
            updates, good, bad = updates + 1, good + 1, 0
            if good == window:
                scale, good = scale * 2, 0
        assert now["skipped_in_a_row"] == bad
        assert (float(step.loss_scale), float(step.good_steps), float(step.bad_steps)) == (scale, good, bad)
    return figures


SELECT = dataclasses.replace(BACKENDS["CPU"], skip_by="select")


@pytest.mark.parametrize("backend", [BACKENDS["CPU"], SELECT], ids=["branch", "select"])
def test_overflow_halves_the_loss_scale_and_changes_nothing_else(backend):
    start, window = 2.0**24, 3
    settings = recipes.optimizer(amp_level="O1", loss_scale=start, loss_scale_window=window, ema_decay=0.9)
    figures = check_scaled_steps(two_layers(settings, backend=backend), 24, start, window)
    skipped = [now["skipped"] for now in figures]
    assert skipped[:2] == [1, 1]
    assert 0 < sum(skipped[6:]) < sum(1 - s for s in skipped)  # grown until it overflowed again, and recovered
    assert all(math.isfinite(now["loss"]) for now in figures)


def test_an_update_without_a_branch_has_the_same_bits():
    settings = recipes.optimizer(amp_level="O1", loss_scale=2.0**20, loss_scale_window=3, ema_decay=0.9, clip_norm=0.1)
    steps = [two_layers(settings, backend=backend, accumulation=2) for backend in (BACKENDS["CPU"], SELECT)]
    skipped = 0
    for i in range(20):
        for step in steps:
            step.accumulate(*map(Tensor, batch(i)))
        branch, select = (run(step, *batch(i + 1)) for step in steps)
        assert {k: repr(v) for k, v in branch.items()} == {k: repr(v) for k, v in select.items()}
        one, other = ({name: value.tobytes() for name, value in step.arrays().items()} for step in steps)
        assert one == other
        skipped += branch["skipped"]
    assert 3 < skipped < 17


@pytest.mark.slow
@pytest.mark.parametrize("level", ["O1", pytest.param("O2", marks=pytest.mark.variant)])
def test_the_network_in_float16_recovers_from_an_overflow(level):
    start, window = 2.0**22, 4
    settings = recipes.optimizer(amp_level=level, loss_scale=start, loss_scale_window=window, ema_decay=0.9)
    step = TrainStep(CSWin(ARCH, precision(level)), settings, RATES)
    figures = check_scaled_steps(begin(step, initial_weights(ARCH, np.random.default_rng(3))), 16, start, window)
    skipped = [now["skipped"] for now in figures]
    assert skipped[0] == 1 and skipped.count(0) >= 6


def test_loss_scale_leaves_the_update_as_it_is():
    """Gradients are unscaled before clipping: figures and weights do not depend on a (power of two) scale that fits."""
    results = []
    for scale in (1.0, 1024.0):
        settings = recipes.optimizer(amp_level="O1", loss_scale=scale, clip_norm=0.1, ema_decay=0.9)
        step = two_layers(settings)
        figures = [run(step, *batch(i)) for i in range(3)]
        results.append(([f["grad_norm"] for f in figures], [p.asnumpy() for p in step.weights]))
    (norms, weights), (scaled_norms, scaled_weights) = results
    assert min(norms) > 0.1
    np.testing.assert_allclose(scaled_norms, norms, rtol=1e-3)
    for ours, theirs in zip(scaled_weights, weights, strict=True):
        assert np.mean(np.abs(ours - theirs)) < 2e-5  # 3 steps of 1e-3; where the gradient underflows Adam's sign is chance


def test_an_overflow_that_only_a_flag_tells_skips_the_step(monkeypatch):
    """On a device that saturates all numbers stay finite; the flag is cleared before an update's first micro-batch alone."""
    monkeypatch.setattr("cswin.train.step.OverflowFlag", Flag)
    backend = dataclasses.replace(BACKENDS["CPU"], overflow="saturation")
    step = two_layers(recipes.optimizer(amp_level="O1", loss_scale=8.0), accumulation=2, backend=backend)
    ops.assign(step.flag.noted, Tensor(1, ms.float32))  # left by an evaluation: no reason to skip
    step.accumulate(*map(Tensor, batch(0)))
    assert run(step, *batch(1))["skipped"] == 0
    before = state(step)
    step.accumulate(*map(Tensor, batch(2)))
    ops.assign(step.flag.noted, Tensor(1, ms.float32))
    figures = run(step, *batch(3))
    assert figures["skipped"] == 1 and math.isfinite(figures["grad_norm"]) and state(step) == before
    assert float(step.loss_scale) == 4.0
    step.accumulate(*map(Tensor, batch(2)))
    assert run(step, *batch(3))["skipped"] == 0


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_values_that_are_not_finite_are_skipped_without_a_loss_scale(value):
    """Level O0: a bad batch changes nothing, the next one goes on; the loss scale stays 1."""
    step = two_layers(recipes.optimizer(amp_level="O0"))
    run(step, *batch(0))
    images, targets, factors = batch(1)
    bad, before = np.full_like(images, value), state(step)
    for count in (1, 2):
        figures = run(step, bad, targets, factors)
        assert (figures["skipped"], figures["skipped_in_a_row"], figures["loss_scale"]) == (1, count, 1)
        assert not math.isfinite(figures["loss"]) or not math.isfinite(figures["grad_norm"])
    assert state(step) == before
    figures = run(step, images, targets, factors)
    assert (figures["skipped"], figures["skipped_in_a_row"], figures["lr"]) == (0, 0, RATES[1])
    assert state(step) != before


def test_an_overflow_in_one_micro_batch_skips_the_whole_step_and_leaves_no_trace():
    settings = recipes.optimizer(amp_level="O1", loss_scale=8.0)
    step = two_layers(settings, accumulation=2)
    clean = two_layers(settings.model_copy(update={"loss_scale": 4.0}), accumulation=2)
    images, targets, factors = batch(1)
    before = state(step)
    step.accumulate(Tensor(np.full_like(images, np.inf)), Tensor(targets), Tensor(factors))
    assert run(step, images, targets, factors)["skipped"] == 1
    assert state(step) == before  # the sums are among it, cleared
    for each in (step, clean):
        each.accumulate(*map(Tensor, batch(2)))
        assert run(each, *batch(3))["skipped"] == 0
    assert state(step) == state(clean)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["O1", "O2"])
def test_float16_stays_near_float32(level):
    """Logits of the digits' network within float16's rounding of products and, at O2, of the stream between them."""
    arch, rng = VARIANTS["cswin_32_1121_digits_32"], np.random.default_rng(0)
    images = Tensor(rng.standard_normal((4, 3, 32, 32)).astype(np.float32))
    logits = {}
    for used in ("O0", level):
        network, weights = initialised(arch, 3, precision(used))
        logits[used] = network(images, weights)
        assert logits[used].dtype == ms.float32
    scale = float(logits["O0"].abs().max())
    difference = float((logits[level] - logits["O0"]).abs().max()) / scale
    assert 1e-6 < difference < {"O1": 5e-3, "O2": 1e-2}[level]


def test_large_values_do_not_overflow_where_float32_is_kept():
    """LayerNorm's sum of squares and softmax's exponentials stay finite at values whose squares leave float16."""
    for level in ("O1", "O2"):
        network, weights = initialised(ARCH, 3, precision(level))
        _, (_, norm_weight, norm_bias) = network.stem.take(weights[0], weights[len(network.layout.pieces)])
        tokens = Tensor(np.random.default_rng(0).normal(0, 3e4, (1, 64, 8)).clip(-6e4, 6e4), ms.float16)
        normal = network.stem.norm(tokens, norm_weight, norm_bias)
        assert normal.dtype == ms.float32
        values = tokens.asnumpy().astype(np.float64)
        expected = (values - values.mean(-1, keepdims=True)) / np.sqrt(values.var(-1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(normal.asnumpy(), expected, atol=1e-4)
        attention = network.blocks[0].attentions[0]
        lepe = Tensor(np.zeros(36, np.float32)), Tensor(np.zeros(4, np.float32))
        q = Tensor(np.random.default_rng(1).normal(0, 60, (8, 8, 4)), ms.float16)  # 8 stripes of 8 tokens
        assert np.isfinite(attention(q, q, q, *lepe).asnumpy()).all()  # scores of some thousand: exp of them is beyond float16


# The trainer


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return converted(tmp_path_factory.mktemp("data"), small_files(train=16, val=2))


def stage(**optimizer):
    return recipes.stage(
        data={"source": "folder", "folder": "images", "classes": 3},
        model={"arch": "cswin_32_1121_digits_32", "drop_path": 0.1},
        augment={"mixup_group": 4, "rand_augment": None},
        optimizer={"global_batch": 4, "amp_level": "O0", **optimizer},
        schedule={"warmup_length": 0},
        stages={"only": {"start_epoch": 0, "epochs": 2}},
        runtime={
            "device_target": "CPU", "devices": 1, "batch_size": 4, "eval_batch_size": 6, "workers": 1, "worker_kind": "thread",
            "log_every": 5, "graph_cache": False,
        },
    )  # fmt: skip


def train(config, runtime, dataset, folder) -> int:
    (folder / "stage.yaml").write_text(dump(config))
    (folder / "runtime.yaml").write_text(dump(runtime))
    files = StageFiles(folder / "stage.yaml", folder / "runtime.yaml", dataset.path, folder / "stage", None)
    return run_stage(files, Stopping(None), Console(), ALONE)


@pytest.fixture(autouse=True)
def signals_stay_pytests(monkeypatch):
    monkeypatch.setattr(Stopping, "listen", lambda self: None)


def test_training_refuses_bfloat16_at_once(dataset, tmp_path):
    config, runtime = stage(amp_level="O1", amp_dtype="bfloat16")
    with pytest.raises(UserError, match=r"optimizer\.amp_dtype"):
        train(config, runtime, dataset, tmp_path)
    assert not (tmp_path / "stage/attempts.jsonl").exists()


@pytest.mark.slow
def test_training_stops_after_too_many_bad_steps_and_leaves_the_last_good_state(dataset, tmp_path, monkeypatch):
    """Twelve steps an epoch; all batches from step 3 on are broken; four bad steps in a row are allowed, the fifth is not."""
    epoch = TrainLoader.epoch

    def broken(self, number, first_step=0):
        for step, batches in enumerate(epoch(self, number, first_step), first_step):
            if step >= 3:
                batches[0].images[:] = np.nan
            yield batches

    monkeypatch.setattr(TrainLoader, "epoch", broken)
    config, runtime = stage(max_bad_steps=5)
    with pytest.raises(UserError, match=r"not finite for 7 steps in a row \(up to step 10\).*state.*schedule.base_lr"):
        train(config, runtime, dataset, tmp_path)  # noticed at the second log, of steps 6 to 10
    rows = [row for row in read_history(tmp_path / "stage/history.jsonl") if row["kind"] == "step"]
    assert [row["skipped"] for row in rows] == [0] * 3 + [1] * 7
    assert [row["loss"] is None for row in rows] == [False] * 3 + [True] * 7
    good = StateFolder(tmp_path / "stage/state", 3, print).load()
    assert all(np.isfinite(array).all() for array in good.arrays.values()) and good.step == 0
    assert "not finite" in read_history(tmp_path / "stage/attempts.jsonl")[-1]["reason"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "optimizer", "message"),
    [
        (False, {"loss_scale": 4.0, "loss_scale_window": 1, "loss_scale_max": 16.0}, "step 3: the loss scale has grown to 16"),
        (True, {"loss_scale": 4.0, "max_bad_steps": 50}, "step 3: the loss scale has fallen to 1 and the step still overflows"),
    ],
    ids=["grows", "falls"],
)
def test_training_stops_where_the_loss_scale_moves_against_reason(dataset, tmp_path, monkeypatch, broken, optimizer, message):
    epoch = TrainLoader.epoch

    def batches(self, number, first_step=0):
        for found in epoch(self, number, first_step):
            if broken:
                found[0].images[:] = np.nan
            yield found

    monkeypatch.setattr(TrainLoader, "epoch", batches)
    with pytest.raises(UserError, match=message):
        train(*stage(amp_level="O1", **optimizer), dataset, tmp_path)
