"""Mixup and cutmix: equal to timm's golden batch, distributed by their formula, and the same for every split of the batch."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from cswin.config.settings import Augment
from cswin.data.augment.erasing import Box, Patch, paste
from cswin.data.augment.mixup import Mixing, apply_mixup, draw_mixup, local_rows, one_hot
from cswin.data.images.evaluation import Normalise
from cswin.data.loader.rng import batch_rng
from cswin.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "mixup.npz"
DRAWS = 20_000
RECIPE = {"mixup": 0.8, "cutmix": 1.0, "mixup_prob": 1.0, "switch_prob": 0.5, "mixup_mode": "elem"}


def draw(count=DRAWS, size=(224, 224), seed=0, **changes):
    return draw_mixup(np.random.default_rng(seed), count, size, Augment.model_construct(**{**RECIPE, **changes}))


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def test_mixup_equals_golden(golden):
    mixing = Mixing(np.full(4, float(golden["lam"])), np.zeros((4, 4), np.int32), np.zeros(4, bool))
    images, targets = apply_mixup(
        golden["x"].copy(), golden["y"], mixing, int(golden["num_classes"]), float(golden["smoothing"])
    )
    np.testing.assert_array_equal(images, golden["mixup_x"])
    np.testing.assert_allclose(targets, golden["mixup_target"], rtol=0, atol=6e-8)


def test_cutmix_equals_golden(golden):
    box = np.tile(golden["bbox_yyxx"].astype(np.int32), (4, 1))
    mixing = Mixing(np.full(4, float(golden["cutmix_lam"])), box, np.ones(4, bool))
    images, targets = apply_mixup(
        golden["x"].copy(), golden["y"], mixing, int(golden["num_classes"]), float(golden["smoothing"])
    )
    np.testing.assert_array_equal(images, golden["cutmix_x"])
    np.testing.assert_allclose(targets, golden["cutmix_target"], rtol=0, atol=6e-8)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_the_paper_s_order_equals_golden(kind):
    """Bytes are mixed and rounded, then normalised, then erased (timm 0.3.4's prefetching loader)."""
    with np.load(GOLDEN.with_name("paper_batch.npz")) as file:
        golden = dict(file)
    size, lam = len(golden["images"]), float(golden[f"{kind}.lam"])
    box = np.zeros((size, 4), np.int32) if kind == "mixup" else np.tile(golden["cutmix.box_top_bottom_left_right"], (size, 1))
    mixing = Mixing(np.full(size, lam), box, np.full(size, kind == "cutmix"))
    mixed, targets = apply_mixup(golden["images"].copy(), golden["labels"], mixing, 5, float(golden["label_smoothing"]))
    np.testing.assert_array_equal(mixed, golden[f"{kind}.mixed_uint8"])
    np.testing.assert_allclose(targets, golden[f"{kind}.targets"], rtol=0, atol=6e-8)
    normalise = Normalise(golden["mean"], golden["std"], 3)
    result = np.stack([normalise(image) for image in mixed])
    np.testing.assert_allclose(result, golden[f"{kind}.normalised"], rtol=0, atol=1e-6)
    row, top, left = golden[f"{kind}.erase_row_top_left"]
    noise = golden[f"{kind}.erase_noise"]
    paste(result[row], [Patch(Box(int(top), int(left), *noise.shape[1:]), noise)])
    np.testing.assert_allclose(result, golden[f"{kind}.erased"], rtol=0, atol=1e-6)


def test_golden_loss(golden):
    """The soft-target cross-entropy of the golden logits and our targets."""
    mixing = Mixing(np.full(4, float(golden["lam"])), np.zeros((4, 4), np.int32), np.zeros(4, bool))
    _, targets = apply_mixup(golden["x"].copy(), golden["y"], mixing, 5, 0.1)
    logits = golden["logits"].astype(np.float64)
    log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert -(targets * log_softmax).sum(axis=1).mean() == pytest.approx(float(golden["mixup_loss"]), abs=1e-6)


@pytest.mark.parametrize(("smoothing", "classes"), [(0.0, 10), (0.1, 1000), (0.3, 2)])
def test_smoothed_one_hot(smoothing, classes):
    labels = np.random.default_rng(0).integers(0, classes, DRAWS if classes < 100 else 100)
    targets = one_hot(labels, classes, smoothing)
    expected = np.eye(classes)[labels] * (1 - smoothing) + smoothing / classes
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets, expected, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.1, 0.8, 1.0, 2.0])
def test_mixup_lam_is_beta(alpha):
    mixing = draw(mixup=alpha, cutmix=0.0)
    assert not mixing.is_cutmix.any()
    assert not mixing.box.any()
    assert stats.kstest(mixing.lam, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def box_side_probabilities(length: int, alpha: float) -> np.ndarray:
    """P(clipped side = k): the side before clipping is 2 (int(length sqrt(1 - lam)) // 2), its centre uniform in 0..length-1."""
    probabilities = np.zeros(length + 1)
    edges = stats.beta(alpha, alpha).cdf(np.clip((np.arange(length + 2) / length) ** 2, 0, 1))  # 1 - lam is Beta as well
    centres = np.arange(length)
    for cut in range(length + 1):
        half = cut // 2
        sides = np.minimum(centres + half, length) - np.maximum(centres - half, 0)
        np.add.at(probabilities, sides, (edges[cut + 1] - edges[cut]) / length)
    return probabilities


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_cutmix_boxes_follow_their_formula(alpha):
    size = (20, 32)
    mixing = draw(50_000, size, mixup=0.0, cutmix=alpha)
    assert mixing.is_cutmix.all()
    top, bottom, left, right = mixing.box.T
    assert mixing.box.dtype == np.int32
    assert min(top.min(), left.min()) >= 0
    assert (bottom.max(), right.max()) == size
    for side, length in ((bottom - top, 20), (right - left, 32)):
        expected = box_side_probabilities(length, alpha) * len(mixing)
        observed = np.bincount(side, minlength=length + 1)
        assert not observed[expected == 0].any()
        kept = expected > 5
        rest = observed[~kept].sum() + 1e-9, expected[~kept].sum() + 1e-9
        assert stats.chisquare([*observed[kept], rest[0]], [*expected[kept], rest[1]]).pvalue > 1e-3
    # The share that the target gets is the one that the box leaves, not the drawn one.
    np.testing.assert_allclose(mixing.lam, 1 - (bottom - top) * (right - left) / (20 * 32), rtol=0, atol=1e-15)


def test_cutmix_box_places_are_uniform():
    """Boxes that are not clipped, of a single size, have uniform corners."""
    mixing = draw(200_000, (32, 32), mixup=0.0)
    top, bottom, left, right = mixing.box.T
    small = (bottom - top == 8) & (right - left == 8) & (top > 0) & (left > 0) & (bottom < 32) & (right < 32)
    for corner in (top[small], left[small]):
        assert stats.chisquare(np.bincount(corner, minlength=24)[1:24]).pvalue > 1e-3


def test_switch_and_mix_probabilities():
    mixing = draw(mixup_prob=0.7, switch_prob=0.3)
    mixed = (mixing.lam != 1) | mixing.is_cutmix
    assert stats.binomtest(int(mixed.sum()), DRAWS, 0.7).pvalue > 1e-3
    assert stats.binomtest(int(mixing.is_cutmix.sum()), int(mixed.sum()), 0.3).pvalue > 1e-3
    assert not mixing.box[~mixing.is_cutmix].any()
    blend = mixed & ~mixing.is_cutmix
    assert stats.kstest(mixing.lam[blend], stats.beta(0.8, 0.8).cdf).pvalue > 1e-3


@pytest.mark.parametrize("changes", [{"mixup_prob": 0.0}, {"mixup": 0.0, "cutmix": 0.0}])
def test_nothing_is_mixed(changes):
    mixing = draw(7, **changes)  # an odd group is allowed here
    assert not mixing.mixes
    images, targets = apply_mixup(np.ones((7, 1, 2, 2), np.float32), np.arange(7), mixing, 7, 0.0)
    np.testing.assert_array_equal(targets, np.eye(7, dtype=np.float32))
    assert (images == 1).all()


def test_modes_share_their_draws():
    batch = draw(8, mixup_mode="batch", seed=1)
    assert len(np.unique(batch.lam)) == 1
    pair = draw(8, mixup_mode="pair", seed=1)
    assert len(np.unique(pair.lam)) == 4
    np.testing.assert_array_equal(pair.lam, pair.lam[::-1])
    np.testing.assert_array_equal(pair.box, pair.box[::-1])
    elem = draw(8, mixup_mode="elem", seed=1)
    assert len(np.unique(elem.lam)) == 8
    # One draw per batch is as often cutmix as one per element.
    groups = [draw(2, mixup_mode="batch", seed=seed, mixup_prob=0.5) for seed in range(3000)]
    assert stats.binomtest(sum(bool(mixing.is_cutmix[0]) for mixing in groups), 3000, 0.25).pvalue > 1e-3


def reference_mix(images, labels, mixing, classes, smoothing):
    """Float64, over the reverse of the whole batch."""
    images, own = images.astype(np.float64), np.eye(classes)[labels] * (1 - smoothing) + smoothing / classes
    mixed = images * mixing.lam[:, None, None, None] + images[::-1] * (1 - mixing.lam)[:, None, None, None]
    for row in np.flatnonzero(mixing.is_cutmix):
        top, bottom, left, right = mixing.box[row]
        mixed[row] = images[row]
        mixed[row][:, top:bottom, left:right] = images[::-1][row][:, top:bottom, left:right]
    return mixed, own * mixing.lam[:, None] + own[::-1] * (1 - mixing.lam)[:, None]


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_application_equals_the_formula(mode):
    rng = np.random.default_rng(2)
    for seed in range(10):
        images, labels = rng.normal(size=(12, 3, 9, 8)).astype(np.float32), rng.integers(0, 6, 12)
        mixing = draw(12, (9, 8), mixup_mode=mode, seed=seed, mixup_prob=0.8)
        expected = reference_mix(images, labels, mixing, 6, 0.1)
        for actual, wanted in zip(apply_mixup(images, labels, mixing, 6, 0.1), expected, strict=True):
            assert actual.dtype == np.float32
            np.testing.assert_allclose(actual, wanted, atol=1e-6)


SPLITS = [
    (32, 8, 1),
    (32, 8, 2),
    (32, 8, 4),
    (32, 8, 8),
    (32, 8, 16),
    (32, 32, 4),
    (24, 4, 2),
    (24, 12, 2),
    (24, 8, 2),
    (24, 6, 4),
]


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize(("global_batch", "group", "parts"), SPLITS)
def test_every_split_gives_the_same_batch(global_batch, group, parts, mode):
    rng = np.random.default_rng(3)
    images, labels = rng.normal(size=(global_batch, 3, 8, 8)).astype(np.float32), rng.integers(0, 9, global_batch)
    groups = [
        draw_mixup(batch_rng(1, 2, 3, number), group, (8, 8), Augment.model_construct(**{**RECIPE, "mixup_mode": mode}))
        for number in range(global_batch // group)
    ]
    mixing = Mixing.concatenate(groups)
    # Unsplit: each group by itself, in its natural order.
    whole = [
        apply_mixup(images[start : start + group].copy(), labels[start : start + group], one, 9, 0.1)
        for start, one in zip(range(0, global_batch, group), groups, strict=True)
    ]
    expected_images, expected_targets = (np.concatenate(arrays) for arrays in zip(*whole, strict=True))
    assert (expected_images != images).any()

    rows = local_rows(global_batch, group, parts)
    assert rows.shape == (parts, global_batch // parts)
    assert sorted(rows.ravel().tolist()) == list(range(global_batch))
    for micro in rows:
        assert (micro // group == micro[::-1] // group).all()
        mixed, targets = apply_mixup(images[micro], labels[micro], mixing.rows(micro), 9, 0.1)
        assert mixed.tobytes() == expected_images[micro].tobytes()
        assert targets.tobytes() == expected_targets[micro].tobytes()


def test_a_micro_batch_of_one_group_keeps_its_order():
    np.testing.assert_array_equal(local_rows(12, 4, 3), np.arange(12).reshape(3, 4))


def test_rows_without_mixing_may_be_odd():
    np.testing.assert_array_equal(local_rows(9, 4, 3, mixed=False), np.arange(9).reshape(3, 3))


def test_mixing_survives_pickling():
    mixing = draw(6)
    again = pickle.loads(pickle.dumps(mixing))
    assert mixing.lam.tobytes() == again.lam.tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((30, 4, 4), "global_batch of 30 cannot be split into 4"),
        ((30, 4, 3), "not a multiple of mixup_group 4"),
        ((30, 5, 3), "mixup_group is 5.*even"),
        ((30, 6, 10), "micro-batch of 3 .*even batch_size"),
        ((0, 2, 1), "1 or more"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        local_rows(*arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixup_mode": "half"}, "mixup_mode is 'half'"),
        ({"mixup_prob": 1.2}, "mixup_prob is 1.2"),
        ({"switch_prob": -0.1}, "switch_prob is -0.1"),
        ({"mixup": -1.0}, "mixup is -1.0"),
        ({"count": 7}, "mixup_group is 7"),
    ],
)
def test_bad_plans_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        draw(**changes)


def test_bad_batches_are_refused():
    images = np.zeros((3, 1, 4, 4), np.float32)
    mixing = draw(4, (4, 4))
    with pytest.raises(UserError, match="batch of 3 cannot be mixed"):
        apply_mixup(images, np.zeros(3, int), mixing.rows([0, 1, 2]), 2, 0.0)
    with pytest.raises(UserError, match="do not belong together"):
        apply_mixup(images, np.zeros(3, int), mixing, 2, 0.0)
    with pytest.raises(UserError, match="labels run from 0 to 5, but there are 5 classes"):
        one_hot(np.array([0, 5]), 5, 0.1)
