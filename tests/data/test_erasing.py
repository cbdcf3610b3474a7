"""Random erasing: boxes by their formula, fills by their mode."""

import math
import pickle

import numpy as np
import pytest
from scipy import stats

from cswin.data.augment.erasing import Box, RandomErasing, paste
from cswin.errors import UserError

DRAWS = 20_000
SIDE = 4000  # so large that rounding to pixels does not show, and that no box is refused


def draws(erasing, height=SIDE, width=SIDE, count=DRAWS, seed=0):
    rng = np.random.default_rng(seed)
    return [erasing.draw(rng, height, width) for _ in range(count)]


def test_share_of_erased_images():
    erased = sum(bool(boxes) for boxes in draws(RandomErasing(0.25)))
    assert stats.binomtest(erased, DRAWS, 0.25).pvalue > 1e-3


@pytest.mark.parametrize(("prob", "expected"), [(0.0, 0), (1.0, 1)])
def test_certain_probabilities(prob, expected):
    assert {len(boxes) for boxes in draws(RandomErasing(prob), count=2000)} == {expected}


def test_area_aspect_and_place_follow_their_formula():
    boxes = np.array([boxes[0] for boxes in draws(RandomErasing(1.0), SIDE, SIDE)])
    top, left, height, width = boxes.T
    area = height * width / SIDE**2
    assert stats.kstest(area, stats.uniform(0.02, 1 / 3 - 0.02).cdf).pvalue > 1e-3
    log_aspect = np.log(height / width)
    assert stats.kstest(log_aspect, stats.uniform(math.log(0.3), -2 * math.log(0.3)).cdf).pvalue > 1e-3
    for start, length in ((top, height), (left, width)):
        assert stats.kstest(start / (SIDE - length), "uniform").pvalue > 1e-3
        assert start.min() >= 0
        assert (start + length).max() <= SIDE


def test_several_boxes_share_the_area():
    drawn = draws(RandomErasing(1.0, count=3))
    counts = np.bincount([len(boxes) for boxes in drawn], minlength=4)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > 1e-3
    for count in (1, 2, 3):
        areas = [box.height * box.width / SIDE**2 * count for boxes in drawn if len(boxes) == count for box in boxes]
        assert stats.kstest(areas, stats.uniform(0.02, 1 / 3 - 0.02).cdf).pvalue > 1e-3


def test_boxes_that_do_not_fit_are_drawn_again():
    """In 10 x 60 pixels a tall box does not fit: the aspect ratios that are left follow the truncated distribution."""
    boxes = np.array([box for boxes in draws(RandomErasing(1.0, min_area=0.3, max_area=0.3), 10, 60) for box in boxes])
    assert boxes[:, 2].max() == 9  # as high as the image is refused, as timm does
    assert boxes[:, 3].max() < 60
    aspect = np.exp(np.random.default_rng(1).uniform(math.log(0.3), -math.log(0.3), 200_000))
    heights, widths = np.rint(np.sqrt(180 * aspect)), np.rint(np.sqrt(180 / aspect))
    fits = (heights < 10) & (widths < 60)
    expected = np.bincount(heights[fits].astype(int), minlength=10)[7:10] / fits.sum()
    assert stats.chisquare(np.bincount(boxes[:, 2], minlength=10)[7:10], expected * len(boxes)).pvalue > 1e-3
    assert stats.binomtest(len(boxes), DRAWS, 1 - (1 - fits.mean()) ** 10).pvalue > 1e-3


def test_ten_failures_leave_the_image_alone():
    assert RandomErasing(1.0, min_area=1.0, max_area=1.0, min_aspect=1.0).draw(np.random.default_rng(0), 8, 8) == []


def test_pixel_fill_is_standard_normal_in_the_box_alone():
    image = np.full((3, 100, 120), 7, np.float32)
    box = Box(10, 20, 80, 90)
    result = paste(image, RandomErasing(1.0, "pixel").fill([box], 3, np.random.default_rng(3)))
    assert result is image
    inside = result[:, 10:90, 20:110]
    assert inside.dtype == np.float32
    assert stats.kstest(inside.ravel(), "norm").pvalue > 1e-3
    inside[:] = 7
    assert (result == 7).all()


def test_rand_fill_is_one_normal_colour_for_each_box():
    erasing, rng = RandomErasing(1.0, "rand"), np.random.default_rng(4)
    colours = []
    for _ in range(7000):
        image = paste(np.full((3, 6, 6), 7, np.float32), erasing.fill([Box(0, 0, 2, 3), Box(3, 0, 2, 3)], 3, rng))
        first, second = image[:, :2, :3], image[:, 3:5, :3]
        assert (first == first[:, :1, :1]).all()
        assert (second == second[:, :1, :1]).all()
        assert (image[:, 2] == 7).all()
        colours.append([*first[:, 0, 0], *second[:, 0, 0]])
    colours = np.array(colours)
    assert stats.kstest(colours.ravel(), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(colours.T) - np.eye(6)).max() < 4 / np.sqrt(len(colours))


def test_const_fill_is_the_mean():
    image = paste(
        np.ones((1, 5, 5), np.float32), RandomErasing(1.0, "const").fill([Box(1, 1, 2, 3)], 1, np.random.default_rng(0))
    )
    assert image.sum() == 25 - 6
    assert (image[0, 1:3, 1:4] == 0).all()


def test_same_numbers_same_result_after_pickling():
    erasing = RandomErasing(1.0, "pixel", 2)
    once, again = (
        paste(np.zeros((3, 32, 32), np.float32), one.patches(np.random.default_rng(5), 3, 32, 32))
        for one in (erasing, pickle.loads(pickle.dumps(erasing)))
    )
    assert once.tobytes() == again.tobytes()
    assert (once != 0).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prob": 1.5}, "erase_prob is 1.5"),
        ({"prob": 0.5, "mode": "noise"}, "erase_mode is 'noise'.*pixel, const, rand"),
        ({"prob": 0.5, "count": 0}, "erase_count is 0"),
        ({"prob": 0.5, "min_area": 0.5, "max_area": 0.4}, "min_area"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        RandomErasing(**arguments)
