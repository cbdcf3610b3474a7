"""The pipelines: crops by torchvision's definition, normalisation by its formula."""

import math
import pickle
from collections import Counter

import numpy as np
import pytest
from photo import encode, photo, planes
from PIL import Image
from pipelines import evaluation, training
from scipy import stats
from sklearn.datasets import load_sample_image

from cswin.data.augment.erasing import paste
from cswin.data.augment.transforms import RandomResizedCrop, dct_scale, resize_shrunk
from cswin.data.images.decode import EncodedImage, decode_rgb
from cswin.data.images.evaluation import Normalise
from cswin.data.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from cswin.data.images.resample import CropBox
from cswin.data.loader.rng import sample_rng
from cswin.errors import UserError

DRAWS = 20_000
NO_NORM = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}  # the result is then the 8-bit values themselves


def pixels(image) -> np.ndarray:
    return np.asarray(image).astype(np.int64)


# The random resized crop


def crops(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), size=(500, 375), count=DRAWS, seed=0) -> np.ndarray:
    crop, rng = RandomResizedCrop(scale, ratio), np.random.default_rng(seed)
    return np.array([crop.draw(rng, *size) for _ in range(count)])


def test_crop_area_aspect_and_place_where_everything_fits():
    side = 4000
    left, top, width, height = crops((0.1, 0.5), (3 / 4, 4 / 3), (side, side)).T
    assert stats.kstest(width * height / side**2, stats.uniform(0.1, 0.4).cdf).pvalue > 1e-3
    assert stats.kstest(np.log(width / height), stats.uniform(math.log(3 / 4), 2 * math.log(4 / 3)).cdf).pvalue > 1e-3
    for start, length in ((left, width), (top, height)):
        assert stats.kstest(start / (side - length), "uniform").pvalue > 1e-3


def test_crop_of_the_recipe_is_the_distribution_of_those_that_fit():
    """Against a vectorised rejection sampler, with rounding: width and height of the crops of a 500 x 375 image."""
    left, top, width, height = crops().T
    assert min(left.min(), top.min()) >= 0
    assert (left + width).max() <= 500
    assert (top + height).max() <= 375
    rng = np.random.default_rng(9)
    area, aspect = rng.uniform(0.08, 1, 400_000) * 500 * 375, np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), 400_000))
    reference = np.stack([np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))])
    reference = reference[:, (reference[0] <= 500) & (reference[1] <= 375)]
    for ours, theirs in zip((width, height), reference, strict=True):
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-3
    assert stats.ks_2samp(width / height, reference[0] / reference[1]).pvalue > 1e-3
    free = top[height < 375] / (375 - height[height < 375])
    assert np.mean(free) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [
        ((100, 10), (3 / 4, 4 / 3), (43, 0, 13, 10)),  # too wide: round(10 * 4 / 3) pixels from (100 - 13) // 2
        ((10, 100), (3 / 4, 4 / 3), (0, 43, 10, 13)),
        ((100, 90), (1.0, 2.0), (0, 0, 100, 90)),
    ],
)
def test_fallback_is_the_largest_central_crop(size, ratio, expected):
    assert RandomResizedCrop((1.0, 1.0), ratio).central(*size) == expected


def test_fallback_after_ten_tries():
    """The whole of a very wide image at an aspect ratio near 1 never fits."""
    assert {tuple(crop) for crop in crops((1.0, 1.0), (3 / 4, 4 / 3), (100, 10), 200)} == {(43, 0, 13, 10)}
    # Half of an 11 x 5 image fits at some ratios alone: the share of fallbacks is that of ten misses in a row.
    scale, ratio, size = (0.7, 1.0), (1.0, 3.0), (300, 150)
    drawn = crops(scale, ratio, size)
    rng = np.random.default_rng(1)
    area, aspect = rng.uniform(*scale, 400_000) * 45000, np.exp(rng.uniform(0, math.log(3), 400_000))
    fits = (np.rint(np.sqrt(area * aspect)) <= 300) & (np.rint(np.sqrt(area / aspect)) <= 150)
    fallbacks = (drawn == (0, 0, 300, 150)).all(axis=1).sum()
    assert stats.binomtest(int(fallbacks), DRAWS, (1 - fits.mean()) ** 10).pvalue > 1e-3


def test_whole_image_when_scale_and_ratio_are_one():
    assert {tuple(crop) for crop in crops((1.0, 1.0), (1.0, 1.0), (32, 32), 100)} == {(0, 0, 32, 32)}


def bicubic_weights(length: int, size: int) -> np.ndarray:
    """Antialiased bicubic resampling (a = -0.5) as a (size, length) matrix, in float64."""
    scale = length / size
    support = max(scale, 1.0)
    centres = (np.arange(size) + 0.5) * scale
    x = np.abs((np.arange(length) + 0.5 - centres[:, None]) / support)
    weights = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("box", [CropBox(5, 3, 90, 61), CropBox(0, 0, 20, 30), CropBox(40, 20, 32, 32), CropBox(0, 0, 100, 80)])
def test_crop_and_resize_equals_the_formula(box, kind, monkeypatch):
    """The filter must not see beyond the crop."""
    data = encode(photo(100, 80), kind)
    transform = training(48, hflip=0.0)
    monkeypatch.setattr(transform.crop, "draw", lambda rng, width, height: box)
    result = transform.decode_crop(data, np.random.default_rng(0)).transpose(1, 2, 0).astype(np.int64)
    part = pixels(decode_rgb(data))[box.top : box.top + box.height, box.left : box.left + box.width]
    expected = np.einsum("yh,xw,hwc->yxc", bicubic_weights(box.height, 48), bicubic_weights(box.width, 48), part)
    assert np.abs(result - np.clip(expected, 0, 255)).max() <= 1.5  # 8 bits after each of the two passes


def crop_and_resize(image: Image.Image, box: CropBox, size: int, name: str = "BICUBIC") -> Image.Image:
    """Rows first; in one call Pillow 13 begins with the columns of a tall image."""
    part = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    return part.resize((size, box.height), Image.Resampling[name]).resize((size, size), Image.Resampling[name])


# Decoding at a reduced scale


@pytest.mark.parametrize(
    ("shape", "scale"),
    [
        ((500, 375), 1),
        ((895, 2000), 1),
        ((896, 2000), 2),
        ((1791, 1800), 2),
        ((1792, 1792), 4),
        ((3584, 4000), 8),
        ((9000, 9000), 8),
    ],
)
def test_reduced_decoding_leaves_twice_the_pixels(shape, scale):
    assert dct_scale(CropBox(0, 0, *shape), 224) == scale


@pytest.mark.parametrize("shrunk", [2, 4, 8])
@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_reduced_decoding_stays_within_its_tolerance(name, shrunk):
    """Photographs at the smallest reserve: mean difference up to 2 of 255 levels, 99 % of the values within 10."""
    photograph = Image.fromarray(load_sample_image(name)[:421, :633])  # odd sizes, so that the geometry is tested as well
    data = encode(photograph, "JPEG", quality=92)
    full = decode_rgb(data)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        size = int(rng.integers(200, 400)) // (2 * shrunk)
        side = 2 * shrunk * size
        assert dct_scale(CropBox(0, 0, side, side), size) == shrunk
        box = CropBox(int(rng.integers(0, 633 - side)), int(rng.integers(0, 421 - side)), side, side)
        reduced = EncodedImage(data).frame("RGB", shrunk)
        assert reduced.shape == (-(-421 // shrunk), -(-633 // shrunk), 3)
        exact = planes(crop_and_resize(full, box, size)).astype(np.int64)
        difference = np.abs(resize_shrunk(reduced, box, size, bicubic=True, shrunk=shrunk) - exact)
        assert difference.mean() < 2
        assert np.quantile(difference, 0.99) <= 10


def test_training_decodes_large_jpegs_reduced_and_others_in_full(monkeypatch):
    transform, scales = training(16, scale=(1.0, 1.0), ratio=(1.0, 1.0)), []
    frame = EncodedImage.frame
    monkeypatch.setattr(EncodedImage, "frame", lambda self, mode, scale: scales.append(scale) or frame(self, mode, scale))
    image = photo(160, 160)
    results = [transform.decode_crop(encode(image, kind), np.random.default_rng(0)) for kind in ("JPEG", "PNG")]
    assert scales == [4, 1]
    assert np.abs(results[0].astype(np.int64) - results[1]).mean() < 3


# Normalisation


def test_normalisation_equals_the_formula():
    image = photo(40, 30)
    result = Normalise(IMAGENET_MEAN, IMAGENET_STD, 3)(planes(image))
    expected = ((pixels(image) / 255 - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)
    assert result.dtype == np.float32
    assert result.shape == (3, 30, 40)
    assert result.flags.c_contiguous
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


def test_greyscale_normalisation():
    grey = photo(40, 30).convert("L")
    result = Normalise(IMAGENET_MEAN, IMAGENET_STD, 1)(planes(grey))
    mean, std = (np.dot((0.299, 0.587, 0.114), values) for values in (IMAGENET_MEAN, IMAGENET_STD))
    np.testing.assert_allclose(result, ((pixels(grey) / 255 - mean) / std)[None], atol=1e-6)
    np.testing.assert_allclose(Normalise((0.2,), (0.5,), 1)(planes(grey)), ((pixels(grey) / 255 - 0.2) / 0.5)[None], atol=1e-6)


def test_fill_is_the_mean_colour():
    assert training(8, rand_augment="rand-m9").augment.fill == (124, 116, 104)
    assert training(8, rand_augment="rand-m9", mean=(1.0, 0.5, 0.0)).augment.fill == (255, 128, 0)
    assert training(8, rand_augment="rand-m9", channels=1).augment.fill == (117,)


# Evaluation


@pytest.mark.parametrize(
    ("size", "ratio", "shape", "resized", "corner"),
    [
        (224, 0.9, (500, 375), (330, 248), (53, 12)),  # int(248 * 500 / 375) = 330
        (224, 0.9, (375, 501), (248, 331), (12, 54)),  # (331 - 224) / 2 = 53.5 rounds to even, 54
        (384, 1.0, (640, 480), (512, 384), (64, 0)),
        (224, 0.875, (300, 300), (256, 256), (16, 16)),
        (32, 1.0, (32, 32), (32, 32), (0, 0)),
    ],
)
def test_evaluation_is_resize_and_centre_crop(size, ratio, shape, resized, corner):
    image = photo(*shape)
    left, top = corner
    expected = image.resize(resized, Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    result = evaluation(size, crop_ratio=ratio, **NO_NORM)(encode(image))
    assert result.flags.c_contiguous
    np.testing.assert_allclose(result, pixels(expected).transpose(2, 0, 1), atol=1e-4)


def test_evaluation_in_greyscale_and_bilinear():
    image = photo(50, 40)
    expected = image.convert("L").resize((40, 32), Image.Resampling.BILINEAR).crop((4, 0, 36, 32))
    transform = evaluation(32, crop_ratio=1.0, channels=1, interpolation="bilinear", mean=(0.0,), std=(1 / 255,))
    np.testing.assert_allclose(transform(encode(image)), pixels(expected)[None], atol=1e-4)


# The training pipeline as a whole


def test_training_without_randomness_is_resize():
    image = photo(48, 48)
    transform = training(16, scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0, **NO_NORM)
    expected = pixels(image.resize((16, 16), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    np.testing.assert_allclose(transform(encode(image), np.random.default_rng(0)), expected, atol=1e-4)
    flipped = training(16, scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=1.0, **NO_NORM)
    np.testing.assert_allclose(flipped(encode(image), np.random.default_rng(0)), expected[..., ::-1], atol=1e-4)


def test_flip_rate():
    ramp = encode(Image.fromarray(np.array([[0, 255]], np.uint8).repeat(2, axis=0)))
    transform, rng = (
        training(2, channels=1, hflip=0.3, scale=(1.0, 1.0), ratio=(1.0, 1.0)),
        np.random.default_rng(0),
    )
    results = Counter(transform.decode_crop(ramp, rng).tobytes() for _ in range(DRAWS))
    assert set(results) == {bytes([0, 255] * 2), bytes([255, 0] * 2)}
    assert stats.binomtest(results[bytes([255, 0] * 2)], DRAWS, 0.3).pvalue > 1e-3


def test_training_is_its_steps_in_order():
    """Crop, flip, RandAugment, normalise, erase, all from one stream."""
    transform = training(24, rand_augment="rand-m9-mstd0.5-inc1-p1", erase_prob=1.0)
    data = encode(photo(50, 40))
    for index in range(10):
        rng = sample_rng(1, 2, index)
        box = transform.crop.draw(rng, 50, 40)
        image = crop_and_resize(photo(50, 40), box, 24)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        expected = transform.normalise(transform.augment(planes(image), rng))
        paste(expected, transform.erase.patches(rng, *expected.shape))
        assert transform(data, sample_rng(1, 2, index)).tobytes() == expected.tobytes()


def test_random_interpolation_draws_a_filter_for_each_crop():
    """After the crop and before the flip, both filters equally often; RandAugment's geometric operations draw for themselves."""
    transform, data, seen = training(24, interpolation="random", hflip=0.0), encode(photo(50, 40)), Counter()
    for index in range(200):
        rng = sample_rng(1, 2, index)
        box = transform.crop.draw(rng, 50, 40)
        name = ("bilinear", "bicubic")[int(rng.integers(2))]
        wanted = crop_and_resize(photo(50, 40), box, 24, name.upper())
        np.testing.assert_array_equal(transform.decode_crop(data, sample_rng(1, 2, index)), planes(wanted))
        seen[name] += 1
    assert min(seen.values()) > 70  # 100 expected, standard deviation 7
    augment = training(24, interpolation="random", rand_augment="rand-m9-mstd0.5-inc1").augment
    drawn = [augment.draw(np.random.default_rng(seed)) for seed in range(100)]
    assert {operation.resample for operations in drawn for operation in operations} == {None, "bilinear", "bicubic"}


@pytest.mark.parametrize("channels", [1, 3])
def test_same_numbers_same_result_after_pickling(channels):
    transform = training(20, channels=channels, rand_augment="rand-m9-mstd0.5-inc1", erase_prob=0.5)
    again = pickle.loads(pickle.dumps(transform))
    seen = set()
    for index in range(8):
        data = encode(photo(50, 40), "JPEG")
        result = transform(data, sample_rng(1, 0, index))
        assert (result.shape, result.dtype, result.flags.c_contiguous) == ((channels, 20, 20), np.float32, True)
        assert result.tobytes() == again(data, sample_rng(1, 0, index)).tobytes()
        seen.add(result.tobytes())
    assert len(seen) == 8


def test_drawn_and_finished_elsewhere_is_the_same():
    """As the loader does it: drawn in one process, sent, finished into a batch."""
    transform, data = (
        training(20, rand_augment="rand-m9-mstd0.5-inc1", erase_prob=0.5, erase_count=2),
        encode(photo(50, 40)),
    )
    batch = np.full((6, 3, 20, 20), np.nan, np.float32)
    for index in range(6):
        drawn = pickle.loads(pickle.dumps(transform.draw(data, sample_rng(1, 0, index))))
        assert drawn.pixels.dtype == np.uint8
        transform.finish(drawn, batch[index])
        assert batch[index].tobytes() == transform(data, sample_rng(1, 0, index)).tobytes()


def test_pipelines_describe_themselves():
    text = str(training(224, rand_augment="rand-m9-mstd0.5-inc1", erase_prob=0.25))
    for part in ("0.08 to 1 of the area", "224 x 224", "flip at probability 0.5", "RandAugment: 2 of 15", "probability 0.25"):
        assert part in text
    assert "shorter side to 248" in str(evaluation(224))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: training(8, hflip=2.0), "hflip is 2.0"),
        (lambda: training(8, scale=(0.0, 1.0)), "scale is"),
        (lambda: training(8, scale=(0.5, 1.1)), "scale is"),
        (lambda: training(8, ratio=(2.0, 1.0)), "ratio is"),
        (lambda: training(8, interpolation="nearest"), "interpolation is 'nearest'"),
        (lambda: training(8, channels=4, mean=(0.0,) * 4, std=(1.0,) * 4), "in_channels is 4"),
        (lambda: training(8, rand_augment="rand-q3"), "rand-q3"),
        (lambda: training(8, mean=(0.5, 0.5)), r"preprocessing\.mean: \[0\.5, 0\.5\] must be 3 finite numbers"),
        (lambda: evaluation(8, std=(1.0, 0.0, 1.0)), r"preprocessing\.std: .* must be positive"),
        (lambda: Normalise((0.0,), (0.0,), 1), "std is"),
        (lambda: Normalise((0.5, 0.5), (1.0,) * 3, 3), "mean has 2 values for 3 channels"),
        (lambda: evaluation(8, crop_ratio=1.2), r"preprocessing\.crop_ratio: 1\.2 must"),
        (lambda: evaluation(8, crop_ratio=0.0), r"preprocessing\.crop_ratio: 0\.0 must"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
