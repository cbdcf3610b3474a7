"""What the pictures show, against independent calculations; how they look, against the rules for legibility."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.special import softmax
from scipy.stats import binomtest

from cswin.config.resolve import load_settings, resolve_stage
from cswin.config.settings import Augment
from cswin.data.augment.mixup import apply_mixup, draw_mixup, one_hot
from cswin.data.images.evaluation import Normalise
from cswin.data.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from cswin.errors import UserError
from cswin.layout import StageLayout
from cswin.predictions import Predictions
from cswin.report.classes import accuracy_with_mistakes
from cswin.report.pictures import style
from cswin.report.pictures.classes import draw_classes
from cswin.report.pictures.curves import accuracy_limits, binned_loss, draw_curves, selected
from cswin.report.pictures.predictions import choose, prediction_tile
from cswin.report.pictures.samples import denormalised, soft_label
from cswin.report.pictures.throughput import draw_throughput, resumptions, smoothed, throughput_series, weighted_mean
from cswin.report.pictures.tiles import percent
from cswin.report.run import StageResult

ROOT = Path(__file__).parents[2]
STEPS = 20  # per epoch, of the made-up history


@pytest.fixture
def stages(tmp_path):
    """A made-up run of two stages, the second interrupted once; a measurement every 5 steps."""
    settings, rng, found = load_settings(ROOT / "config/config.yaml"), np.random.default_rng(1), []
    for name in ("stage1", "stage2"):
        config, history = resolve_stage(settings, name), []
        for step in range(config.start_epoch * STEPS + 1, config.epochs * STEPS + 1):
            epoch = (step - 1) // STEPS
            history.append({"kind": "step", "step": step, "epoch": epoch, "loss": 3 - step / 1000 + rng.normal(), "lr": 1e-3})
            if step % 5 == 0:
                seconds = float(rng.uniform(1, 9))
                history[-1] |= {"seconds": seconds, "images_per_s": 5 * 32 / seconds, "wait": float(rng.uniform(0, 0.5))}
            if step % STEPS == 0:
                top1 = {which: {"top1": 90 + epoch / 10 + bonus, "loss": 1.0} for which, bonus in (("raw", 0.0), ("ema", 0.3))}
                history.append({"kind": "epoch", "epoch": epoch, "step": step, **top1})
        first = config.start_epoch * STEPS
        attempts = [{"event": "start", "devices": 1}, {"event": "begin", "step": first}]
        if name == "stage2":
            attempts += [{"event": "start", "devices": 1}, {"event": "resume", "step": first + 40}]
        found.append(stage_result(tmp_path / "run", config, history, attempts, {"best_epoch": config.epochs - 2}))
    return found


def stage_result(run, config, history, attempts=(), record=None) -> StageResult:
    """With its history in a file, as the trainer writes it."""
    folder = run / config.stage
    folder.mkdir(parents=True)
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    return StageResult(config.stage, StageLayout(folder), Path(f"{config.stage}.yaml"), config, list(attempts), record, None)


def history_of(stage: StageResult) -> list[dict]:
    return [json.loads(line) for line in stage.files.history.open()]


def test_loss_is_binned_by_half_epochs(stages, tmp_path):
    rows = history_of(stages[0])
    rows[3]["loss"] = None  # a step that overflowed
    bins = binned_loss(stage_result(tmp_path, stages[0].config, rows), STEPS)
    steps = [row for row in rows if row["kind"] == "step"]
    losses = np.array([np.nan if row["loss"] is None else row["loss"] for row in steps]).reshape(-1, STEPS // 2)
    assert np.allclose(bins["mean"], np.nanmean(losses, axis=1))
    assert np.allclose(bins.low, np.nanquantile(losses, 0.05, axis=1))
    assert np.allclose(bins.high, np.nanquantile(losses, 0.95, axis=1))
    assert np.allclose(bins.epoch, (np.arange(len(bins)) + 0.5) / 2 + 0.5 / STEPS)


def test_rings_are_at_the_checkpoints(stages, tmp_path):
    assert selected(stages) == [(13, pytest.approx(91.6), "ema"), (18, pytest.approx(92.1), "ema")]
    unfinished = stage_result(tmp_path, stages[1].config, history_of(stages[1]))
    assert selected([unfinished]) == []


def test_enlarged_axis_holds_references_and_the_best(stages):
    low, high = accuracy_limits(stages[0].history.epochs, [88.5, 93.0])
    assert low < 88.5 and 93.0 < high <= 100.2
    low, high = accuracy_limits([{"raw": {"top1": 99.9}, "ema": {"top1": 100.0}}], [])
    assert low < 99 and 100 < high < 101


def test_throughput_is_images_over_time(stages):
    frame = throughput_series(stages)
    steps = sum(sum(row["kind"] == "step" for row in history_of(stage)) for stage in stages)
    assert weighted_mean(frame, "images_per_s") == pytest.approx(32 * steps / frame.seconds.sum())
    assert frame.hours.iloc[-1] == pytest.approx(frame.seconds.sum() / 3600)
    assert frame.step.tolist() == list(range(5, steps + 1, 5))
    # The first measurement after each begin or resume, and no other, contains a compilation.
    assert frame.step[frame["first"]].tolist() == [5, 15 * STEPS + 5, 15 * STEPS + 45]


def test_smoothing_keeps_the_mean_over_time(stages):
    frame = throughput_series(stages).assign(time=lambda f: f.hours, begin=lambda f: f.hours - f.seconds / 3600)
    line = smoothed(frame, "wait", 8)
    assert len(line) == 8 and line.time.is_monotonic_increasing
    tenth = frame.iloc[: len(frame) // 8]
    assert line.wait.iloc[0] == pytest.approx(np.average(tenth.wait, weights=tenth.seconds))
    assert smoothed(frame, "wait", 1).wait.item() == pytest.approx(weighted_mean(frame, "wait"))


def test_resumption_lies_where_training_had_come_to(stages):
    frame = throughput_series(stages)
    [hours] = resumptions(stages, frame)
    assert hours == pytest.approx(frame.seconds[frame.step <= 15 * STEPS + 40].sum() / 3600)


def predictions(n=4000, classes=12, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n).astype(np.int32)
    said = np.where(rng.random(n) < 0.8, labels, rng.integers(0, classes, n)).astype(np.int32)
    return Predictions(labels, said[:, None], rng.exponential(size=n), np.arange(n))


def test_class_accuracy_like_a_cross_table():
    made = predictions()
    names = tuple(f"class {i}" for i in range(12))
    found = accuracy_with_mistakes(made, names)
    table = pd.crosstab(made.labels, made.top5[:, 0])
    for label, row in table.iterrows():
        right, n = int(row[label]), int(row.sum())
        interval = binomtest(right, n).proportion_ci(0.95, "wilson")
        mine = found.iloc[label]
        assert mine["name"] == names[label]
        assert (mine.n, mine.right) == (n, right)
        assert mine.top1 == pytest.approx(100 * right / n)
        assert (mine.low, mine.high) == (pytest.approx(100 * interval.low), pytest.approx(100 * interval.high))
        others = row.drop(label)
        assert mine.times == others.max() and mine.mistaken == names[others.idxmax()]


def test_classes_without_images_or_mistakes():
    labels = np.array([0, 0, 2], np.int32)
    found = accuracy_with_mistakes(Predictions(labels, labels[:, None], np.ones(3), np.arange(3)), ("a", "b", "c"))
    assert found.name.tolist() == ["a", "c"] and found.mistaken.tolist() == ["", ""] and found.times.tolist() == [0, 0]


def test_shown_images_wrong_first_least_probable_first():
    made = predictions()
    chosen = choose(made, seed=3)
    wrong = sorted(np.flatnonzero(made.labels != made.top5[:, 0]), key=lambda i: np.exp(-made.losses[i]))
    right = sorted(np.flatnonzero(made.labels == made.top5[:, 0]), key=lambda i: np.exp(-made.losses[i]))
    assert list(chosen) == ["wrong", "unsure", "typical"]
    assert chosen["wrong"].tolist() == wrong[:24] and chosen["unsure"].tolist() == right[:8]
    assert len(set(chosen["typical"])) == 8 and set(chosen["typical"]) <= set(right[8:])
    assert choose(made, seed=3)["typical"].tolist() == chosen["typical"].tolist() != choose(made, seed=4)["typical"].tolist()


def test_few_images_are_all_shown_once():
    made = predictions(n=20)
    chosen = np.concatenate(list(choose(made, 0).values()))
    assert len(set(chosen.tolist())) == len(chosen) == min(20, int((~made.right1).sum()) + 16)


def test_caption_names_both_classes_and_the_probability_of_the_label():
    logits, labels = np.array([[0.1, 2.0, 0.7], [3.0, -1.0, 0.2]]), np.array([2, 0], np.int32)
    probability = softmax(logits, axis=1)
    losses = -np.log(probability[[0, 1], labels])
    made = Predictions(labels, np.argsort(-logits, axis=1).astype(np.int32), losses, np.arange(2))
    wrong, right = (prediction_tile(made, ("ant", "bee", "cat"), i, labels[i], np.zeros((1, 2, 2), np.uint8)) for i in (0, 1))
    assert wrong.caption == ("✗ said bee", "is cat", f"p {100 * probability[0, 2]:.0f} %") and wrong.colour == style.WRONG
    assert right.caption == ("✓ ant", f"p {100 * probability[1, 0]:.0f} %") and right.colour == style.RIGHT


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_is_undone(channels):
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD, channels)
    pixels = np.broadcast_to(np.arange(256, dtype=np.uint8), (channels, 1, 256))
    assert np.array_equal(denormalised(normalise(pixels), normalise), pixels)
    noise = np.full((2, channels, 4, 4), 99, np.float32)
    assert (denormalised(noise, normalise) == 255).all() and (denormalised(-noise, normalise) == 0).all()


def test_soft_label_names_the_two_that_were_mixed():
    names = tuple("abcdefghij")
    plain = one_hot(np.array([2]), 10, 0.1)[0]
    assert soft_label(plain, names) == ("c: 91 %",)  # 1 - 0.1 + 0.1 / 10; the others' 1 % is smoothing, no second class
    augment = Augment.model_construct(mixup=0.8, cutmix=0, mixup_prob=1, switch_prob=0, mixup_mode="batch")
    mixing = draw_mixup(np.random.default_rng(2), 2, (4, 4), augment)
    _, targets = apply_mixup(np.zeros((2, 1, 4, 4), np.float32), np.array([2, 5]), mixing, 10, 0.1)
    share = max(mixing.lam[0], 1 - mixing.lam[0])
    expected = [percent(0.9 * part + 0.01) for part in (share, 1 - share)]
    assert [line.split(": ")[1] for line in soft_label(targets[0], names)] == expected
    assert {line.split(": ")[0] for line in soft_label(targets[0], names)} == {"c", "f"}


@pytest.mark.parametrize(
    ("share", "text"), [(0.0004, "<0.1 %"), (0.0042, "0.4 %"), (0.099, "9.9 %"), (0.914, "91 %"), (1, "100 %")]
)
def test_percent(share, text):
    assert percent(share) == text


def linear(colour: str) -> np.ndarray:
    """Linear RGB of a colour (IEC 61966-2-1)."""
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, two: str) -> float:
    """Contrast ratio of WCAG 2."""
    a, b = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, two))
    return (b + 0.05) / (a + 0.05)


def test_colours_are_legible_and_told_apart_by_the_colour_blind():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for colour in (style.RAW, style.EMA, style.RATE, style.NEUTRAL, style.INK, style.QUIET):
        assert contrast(colour, "#ffffff") >= 4.5
    assert contrast(style.BAR, "#ffffff") >= 3 and contrast(style.INK, style.BAR) >= 4.5
    # Deuteranopia and protanopia in linear RGB (Machado, Oliveira, Fernandes 2009, severity 1).
    deutan = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]])
    protan = np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]])
    for matrix in (deutan, protan):
        raw, ema = (np.clip(matrix @ linear(colour), 0, 1) for colour in (style.RAW, style.EMA))
        assert np.abs(raw - ema).max() > 0.25


def check_picture(path):
    with Image.open(path) as image:
        assert image.width == 1280 and image.height > 300
        pixels = np.asarray(image.convert("RGBA"))
        assert image.info["Title"]
    assert (pixels[..., 3] == 255).all()  # opaque: legible on a page of any colour
    assert (pixels[:4, :, :3] == 255).all() and (pixels[-4:, :, :3] == 255).all()  # nothing runs over the edge
    assert (pixels[:, :3, :3] == 255).all() and (pixels[:, -3:, :3] == 255).all()
    assert 0.01 < (pixels[..., :3] < 200).any(-1).mean() < 0.6  # something is drawn


def test_pictures_of_a_run(stages, tmp_path):
    reported = {"stage1": 91.0, "stage2": None}
    draw_curves(stages, tmp_path / "curves.png", title="made-up", reported=reported, paper=92.0)
    draw_throughput(stages, tmp_path / "throughput.png", title="made-up")
    check_picture(tmp_path / "curves.png")
    check_picture(tmp_path / "throughput.png")


def test_pictures_while_the_first_stage_runs(stages, tmp_path):
    rows = history_of(stages[0])[: STEPS + 1]  # one epoch, just validated
    running = stage_result(tmp_path / "running", stages[0].config, rows, stages[0].attempts)
    draw_curves([running], tmp_path / "curves.png", title="made-up", reported={}, paper=None)
    draw_throughput([running], tmp_path / "throughput.png", title="made-up")
    check_picture(tmp_path / "curves.png")
    with pytest.raises(UserError, match="log_every"):
        nothing = stage_result(tmp_path / "nothing", stages[0].config, rows[:2])
        draw_throughput([nothing], tmp_path / "none.png", title="made-up")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("classes", [2, 12, 300])
def test_pictures_of_classes(tmp_path, classes):
    made = predictions(classes=classes)
    names = ("$x_1$ & <b>", "a very long name of a class, with a comma and more", *(f"n{i:08d}" for i in range(classes)))
    draw_classes(accuracy_with_mistakes(made, names), tmp_path / "classes.png", title="made-up", weights="raw weights")
    check_picture(tmp_path / "classes.png")
