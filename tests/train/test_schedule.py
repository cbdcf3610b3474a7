"""The learning rate at every phase border of the report's stages, and timm's rates for the paper's recipe."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from cswin.config.resolve import load_settings, resolve_stage
from cswin.train.schedule import learning_rate, learning_rates

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parents[1] / "golden"
IMAGES = 1_281_167
BASE, FLOOR, START, WARMUP, COSINE = 1e-3, 1e-5, 1e-6, 20, 300  # the report's
COOL, TAIL, OVER = 1e-5, 1e-6, 1e-7


def warmup(epoch: float) -> float:
    return START + (BASE - START) * epoch / WARMUP


def cosine(epoch: float) -> float:
    """The half wave from 20 to 300 as a product of sines, not as the code has it."""
    return FLOOR + (BASE - FLOOR) * math.sin(math.pi / 2 * (COSINE - epoch) / (COSINE - WARMUP)) ** 2


def stages(name: str):
    settings = load_settings(ROOT / "config" / "imagenet" / f"{name}.yaml")
    return {stage: resolve_stage(settings, stage) for stage in settings.stages}


REPORT = stages("report_small_224") | {"one_run": stages("report_small_224_one_run")["train"]}
# Stage: {epoch at which a phase begins: (what holds before, what holds from there on)}, by the spec's table.
BORDERS = {
    "stage1": {20: (warmup, cosine), 300: (cosine, COOL)},
    "stage2": {20: (warmup, cosine), 300: (cosine, COOL)},
    "stage3": {20: (warmup, cosine), 300: (cosine, COOL), 380: (COOL, TAIL), 440: (TAIL, OVER)},
}
BORDERS["one_run"] = BORDERS["stage3"]
ENDS = {"stage1": (0, 320), "stage2": (320, 380), "stage3": (380, 500), "one_run": (0, 500)}


def value(phase, epoch: float) -> float:
    return phase(epoch) if callable(phase) else phase


@pytest.mark.parametrize("per", ["step", "epoch"])
@pytest.mark.parametrize("name", REPORT)
def test_every_phase_border(name, per):
    config = REPORT[name]
    schedule = config.schedule.model_copy(update={"per": per})
    per_epoch = IMAGES // config.optimizer.global_batch
    assert per_epoch == 1251
    assert (config.start_epoch, config.epochs) == ENDS[name]

    def rate(step):
        return learning_rate(step, per_epoch, schedule, config.epochs)

    assert rate(0) == START
    for epoch, (before, after) in BORDERS[name].items():
        first = epoch * per_epoch
        last_epoch = epoch - 1 / per_epoch if per == "step" else epoch - 1
        assert rate(first - 1) == pytest.approx(value(before, last_epoch), rel=1e-9)
        assert rate(first) == pytest.approx(value(after, epoch), rel=1e-12)
        next_epoch = epoch + 1 / per_epoch if per == "step" else epoch
        assert rate(first + 1) == pytest.approx(value(after, next_epoch), rel=1e-9)
    _, last = list(BORDERS[name].values())[-1]
    assert rate(config.epochs * per_epoch - 1) == last
    middle = 160 * per_epoch + per_epoch // 2  # of the half wave
    assert rate(middle) == pytest.approx(cosine(160 + (per_epoch // 2 / per_epoch if per == "step" else 0)), rel=1e-9)
    assert cosine(160) == pytest.approx((BASE + FLOOR) / 2)


def test_the_stages_follow_the_one_run_up_to_the_last_phase_of_each():
    """Stage by stage, the rates of the single run: what the report calls equivalent."""
    per_epoch = 8
    whole = REPORT["one_run"]
    expected = learning_rates(0, 500 * per_epoch, per_epoch, whole.schedule, whole.epochs)
    parts = []
    for name in ("stage1", "stage2", "stage3"):
        config = REPORT[name]
        first, last = config.start_epoch * per_epoch, config.epochs * per_epoch
        parts.append(learning_rates(first, last, per_epoch, config.schedule, config.epochs))
    np.testing.assert_array_equal(np.concatenate(parts), expected)
    assert expected.dtype == np.float32


@pytest.mark.parametrize(("config", "golden"), [("paper_tiny_224", "2e-3"), ("paper_base_224", "1e-3")])
def test_paper_recipe_equals_timm(config, golden):
    """Constant within an epoch; the cosine runs from epoch 0, so the peak stays below the base rate."""
    config = stages(config)["train"]
    with (DATA / f"lr_paper_base_{golden}.csv").open() as file:
        expected = [float(row["lr"]) for row in csv.DictReader(file)]
    assert len(expected) == config.epochs == 310
    per_epoch = IMAGES // config.optimizer.global_batch
    for epoch, rate in enumerate(expected):
        for step in (0, per_epoch // 2, per_epoch - 1):
            ours = learning_rate(epoch * per_epoch + step, per_epoch, config.schedule, config.epochs)
            assert ours == pytest.approx(rate, rel=1e-12), epoch
    assert max(expected) < float(golden)


def test_a_schedule_without_warmup_starts_at_its_base_rate():
    (config,) = stages("paper_base_384").values()
    assert config.schedule.warmup_length == 0
    assert learning_rate(0, 100, config.schedule, config.epochs) == config.schedule.base_lr == 5e-6
    last_of_cosine = learning_rate(20 * 100 - 1, 100, config.schedule, config.epochs)
    assert learning_rate(20 * 100, 100, config.schedule, config.epochs) == config.schedule.cool_lr == 5e-7
    assert 5e-7 < last_of_cosine < 5e-6
