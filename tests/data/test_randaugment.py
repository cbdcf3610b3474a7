"""RandAugment: each operation equals timm's golden images, each draw follows its distribution, the syntax is timm's."""

import json
import math
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from photo import photo, planes
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from cswin.data.augment.operations import OPERATIONS
from cswin.data.augment.randaugment import INCREASING, PLAIN, Operation, RandAugment
from cswin.errors import UserError

MEAN_FILL = (124, 116, 104)
RECIPE = "rand-m9-mstd0.5-inc1"
DRAWS = 20_000


def parse(text, interpolation="bicubic", fill=MEAN_FILL):
    return RandAugment.parse(text, mean_fill=fill, interpolation=interpolation)


def drawn(text, count=DRAWS, seed=0, **options):
    augment, rng = parse(text, **options), np.random.default_rng(seed)
    return [augment.draw(rng) for _ in range(count)]


def load_golden():
    with np.load(Path(__file__).parents[1] / "golden" / "randaugment_ops.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads(str(arrays["cases"]))


@pytest.mark.parametrize("name", INCREASING)
def test_operation_equals_golden(name):
    arrays, cases = load_golden()
    augment = parse(RECIPE)
    image = planes(Image.fromarray(arrays["image"]))
    cases = [case for case in cases if case["op"] == name]
    assert len(cases) == 12
    for case in cases:
        argument = OPERATIONS[name].argument(case["magnitude"], case["sign"])
        np.testing.assert_allclose(argument, case["args"], rtol=1e-15)
        if case["result"] is not None:
            operation = Operation(name, case["magnitude"], argument, augment.filters[0])
            result = augment.apply(image, [operation]).transpose(1, 2, 0)
            np.testing.assert_array_equal(result, arrays[case["result"]], err_msg=str(case))


def affine(image, matrix, **options):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, **options)


PILLOW = {
    "AutoContrast": ImageOps.autocontrast,
    "Equalize": ImageOps.equalize,
    "Invert": ImageOps.invert,
    "Rotate": lambda image, degrees, **options: image.rotate(degrees, **options),
    "Posterize": lambda image, bits: ImageOps.posterize(image, bits) if bits > 0 else image.point(lambda value: 0),
    "Solarize": ImageOps.solarize,
    "SolarizeAdd": lambda image, add: image.point(lambda value: min(255, value + add) if value < 128 else value),
    "Color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "Contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "Brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "Sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "ShearX": lambda image, factor, **options: affine(image, (1, factor, 0, 0, 1, 0), **options),
    "ShearY": lambda image, factor, **options: affine(image, (1, 0, 0, factor, 1, 0), **options),
    "TranslateXRel": lambda image, share, **options: affine(image, (1, 0, share * image.width, 0, 1, 0), **options),
    "TranslateYRel": lambda image, share, **options: affine(image, (1, 0, 0, 0, 1, share * image.height), **options),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_equals_pillow(name, channels):
    """To the bit, at drawn magnitudes, on images of all kinds of content and shape."""
    rng, fill = np.random.default_rng(channels), MEAN_FILL[:channels]
    contents = [
        photo(53, 40), photo(32, 32, 1), Image.new("RGB", (9, 7), (200, 0, 13)), Image.new("RGB", (1, 1), (7, 8, 9)),
        Image.fromarray(rng.integers(0, 256, (30, 41, 3), dtype=np.uint8)),
        Image.fromarray(rng.integers(100, 140, (20, 3, 3), dtype=np.uint8)),
        Image.linear_gradient("L").convert("RGB").resize((64, 64)),
    ]  # fmt: skip
    for number, image in enumerate(contents * 3):
        image = image if channels == 3 else image.convert("L")
        magnitude = [0.0, 10.0, 20.0][number // 7] if number % 7 == 0 else rng.uniform(0, 12)
        argument = OPERATIONS[name].argument(magnitude, 1 - 2 * (number % 2))
        resample = ("bicubic", "bilinear")[number % 2] if OPERATIONS[name].geometric else None
        options = {"resample": getattr(Image.Resampling, resample.upper()), "fillcolor": fill} if resample else {}
        if channels == 1 and options:
            options["fillcolor"] = fill[0]
        pixels = planes(image)
        before = pixels.tobytes()
        result = parse(RECIPE, fill=fill).apply(pixels, [Operation(name, magnitude, argument, resample)])
        expected = planes(PILLOW[name.removesuffix("Increasing")](image, *argument, **options))
        np.testing.assert_array_equal(result, expected, err_msg=f"image {number}, argument {argument}")
        assert pixels.tobytes() == before


def test_posterize_at_full_magnitude_is_black():
    """0 bits: the table of Pillow up to 12 (i & ~(2 ** 8 - 1)) is all zeros; Pillow 13 refuses, and the golden file has no result."""
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.stack([pixels] * 3)
    assert OPERATIONS["PosterizeIncreasing"].argument(10.0, 1) == (0,)
    for name, magnitude in (("PosterizeIncreasing", 10.0), ("Posterize", 0.0)):
        argument = OPERATIONS[name].argument(magnitude, 1)
        result = parse(RECIPE).apply(image, [Operation(name, magnitude, argument)])
        np.testing.assert_array_equal(result[0], pixels & ~(2**8 - 1))


@pytest.mark.parametrize(
    ("name", "magnitude", "expected"),
    [
        ("Posterize", 4.0, (1,)),
        ("Posterize", 10.0, (4,)),
        ("Solarize", 0.0, (0,)),
        ("Solarize", 9.0, (230,)),
        ("Color", 0.0, (0.1,)),
        ("Contrast", 5.0, (1.0,)),
        ("Brightness", 10.0, (1.9,)),
        ("Sharpness", 9.0, (1.72,)),
    ],
)
def test_arguments_of_the_plain_operations(name, magnitude, expected):
    for sign in (1, -1):
        assert OPERATIONS[name].argument(magnitude, sign) == pytest.approx(expected)


def test_operations_beyond_full_magnitude():
    """mmax above 10 stretches every range; the enhancements stop at 0.1, posterize at 0 bits."""
    assert OPERATIONS["ColorIncreasing"].argument(15.0, -1) == (0.1,)
    assert OPERATIONS["Rotate"].argument(20.0, -1) == (-60.0,)
    image = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    augment = parse(RECIPE)
    for name in {*INCREASING, *PLAIN}:
        operation = Operation(name, 20.0, OPERATIONS[name].argument(20.0, 1), augment.filters[0])
        assert augment.apply(image, [operation]).shape == (3, 8, 8)


def test_operations_are_drawn_evenly_and_by_halves():
    counts = Counter(operation.name for operations in drawn(RECIPE) for operation in operations)
    assert set(counts) == set(INCREASING)
    assert len(INCREASING) == 15
    assert stats.chisquare([counts[name] for name in INCREASING]).pvalue > 1e-3
    lengths = np.bincount([len(operations) for operations in drawn(RECIPE, seed=1)], minlength=3)
    assert stats.chisquare(lengths, stats.binom(2, 0.5).pmf(range(3)) * DRAWS).pvalue > 1e-3


def test_operations_are_drawn_with_replacement():
    pairs = [operations for operations in drawn("rand-m9-p1-inc1") if len(operations) == 2]
    assert len(pairs) == DRAWS
    same = sum(first.name == second.name for first, second in pairs)
    assert stats.binomtest(same, DRAWS, 1 / 15).pvalue > 1e-3


@pytest.mark.parametrize(("text", "layers", "prob"), [("rand-n3-p0.2", 3, 0.2), ("rand-n1-p1", 1, 1.0), ("rand-p0", 2, 0.0)])
def test_number_and_probability(text, layers, prob):
    lengths = [len(operations) for operations in drawn(text)]
    assert max(lengths) <= layers
    assert np.mean(lengths) == pytest.approx(layers * prob, abs=4 * math.sqrt(layers * prob * (1 - prob) / DRAWS) + 1e-12)


def magnitudes(text, **options):
    return np.array([operation.magnitude for operations in drawn(text, **options) for operation in operations])


def test_magnitude_is_a_clipped_normal():
    values = magnitudes("rand-m9-mstd0.5-inc1-p1")
    normal = stats.norm(9, 0.5)
    assert stats.binomtest(int((values == 10).sum()), len(values), normal.sf(10)).pvalue > 1e-3
    inside = values[(values > 0) & (values < 10)]
    assert len(inside) + (values == 10).sum() == len(values)
    assert stats.kstest(inside, lambda x: normal.cdf(x) / normal.cdf(10)).pvalue > 1e-3


def test_magnitude_is_clipped_at_both_ends():
    values = magnitudes("rand-m1-mstd2-mmax2-p1")
    normal = stats.norm(1, 2)
    assert stats.binomtest(int((values == 0).sum()), len(values), normal.cdf(0)).pvalue > 1e-3
    assert stats.binomtest(int((values == 2).sum()), len(values), normal.sf(2)).pvalue > 1e-3
    assert (values.min(), values.max()) == (0, 2)


def test_magnitude_is_uniform_for_a_large_deviation():
    values = magnitudes("rand-m8-mstd101-p1")
    assert stats.kstest(values, stats.uniform(0, 8).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("text", "expected"), [("rand-m7", 7.0), ("rand", 10.0), ("rand-m12", 10.0), ("rand-m12-mmax20", 12.0)]
)
def test_magnitude_without_noise(text, expected):
    assert set(magnitudes(text, count=500)) == {expected}


def test_signs_are_fair_and_arguments_follow():
    operations = [operation for operations in drawn("rand-m9-mstd0.5-inc1-p1") for operation in operations]
    for name in INCREASING:
        arguments = [(operation.magnitude, *operation.argument) for operation in operations if operation.name == name]
        if name in ("AutoContrast", "Equalize", "Invert"):
            assert {len(argument) for argument in arguments} == {1}
            continue
        magnitude, argument = np.array(arguments).T
        if name in ("PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd"):
            full, start, direction = {
                "PosterizeIncreasing": (4, 4, -1),
                "SolarizeIncreasing": (256, 256, -1),
                "SolarizeAdd": (110, 0, 1),
            }[name]
            np.testing.assert_array_equal(argument, start + direction * np.floor(magnitude / 10 * full))
            continue
        centre = 1.0 if "Increasing" in name else 0.0
        full = 0.9 if centre else {"Rotate": 30, "ShearX": 0.3, "ShearY": 0.3}.get(name, 0.45)
        np.testing.assert_allclose(np.abs(argument - centre), magnitude / 10 * full, atol=1e-12)
        assert stats.binomtest(int((argument > centre).sum()), len(argument), 0.5).pvalue > 1e-3


def test_filters():
    def filters(interpolation):
        operations = [operation for operations in drawn(RECIPE, interpolation=interpolation) for operation in operations]
        plain = {operation.resample for operation in operations if not OPERATIONS[operation.name].geometric}
        assert plain == {None}
        return Counter(operation.resample for operation in operations if OPERATIONS[operation.name].geometric)

    assert set(filters("bicubic")) == {"bicubic"}
    assert set(filters("bilinear")) == {"bilinear"}
    either = filters("random")
    assert set(either) == {"bicubic", "bilinear"}
    assert stats.binomtest(either["bicubic"], either.total(), 0.5).pvalue > 1e-3


def test_inc_chooses_the_operations():
    assert parse("rand-m9-inc1").operations == INCREASING
    assert parse("rand-m9-inc0").operations == parse("rand-m9").operations == PLAIN
    assert set(INCREASING) - set(PLAIN) == {
        "PosterizeIncreasing", "SolarizeIncreasing", "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing",
        "SharpnessIncreasing",
    }  # fmt: skip
    assert set(PLAIN) <= set(OPERATIONS)


def test_greyscale_equals_the_colour_result_of_a_grey_image():
    """Except for Color, which leaves grey as it is in both."""
    grey = np.random.default_rng(0).integers(0, 256, (1, 24, 20), dtype=np.uint8)
    colour = np.concatenate([grey] * 3)
    one, three = parse(RECIPE, fill=(100,)), parse(RECIPE, fill=(100, 100, 100))
    for name in INCREASING:
        operation = Operation(name, 6.0, OPERATIONS[name].argument(6.0, -1), one.filters[0])
        result = one.apply(grey, [operation])
        assert result.shape == grey.shape
        np.testing.assert_array_equal(result[0], three.apply(colour, [operation])[0], err_msg=name)


def test_same_numbers_same_image_after_pickling():
    image = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    augment = parse("rand-m9-mstd0.5-inc1-p1-n4")
    again = pickle.loads(pickle.dumps(augment))
    before = image.tobytes()
    for seed in range(20):
        first, second = augment(image, np.random.default_rng(seed)), again(image, np.random.default_rng(seed))
        assert first.tobytes() == second.tobytes()
        assert first.shape == image.shape
    assert image.tobytes() == before


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("augmix-m3", "does not start with rand"),
        ("rand-m9.5", "m wants a whole number, not '9.5'"),
        ("rand-m", "m wants a whole number"),
        ("rand-mstdinf", "'mstdinf' is not known"),
        ("rand-mstd0.5.5", "mstd wants a number"),
        ("rand-n0", "n wants a whole number from 1"),
        ("rand-mmax0", "mmax wants a whole number from 1"),
        ("rand-p1.5", "p wants a probability"),
        ("rand-inc2", "inc wants 0 or 1"),
        ("rand-x3", "'x3' is not known"),
        ("rand-m9-", "'' is not known"),
        ("rand-M9", "'M9' is not known"),
        ("rand-m9-m8", "m is given twice"),
        ("rand-m9-w0", "weighted sets"),
        ("rand-m9-tweights", "weighted sets"),
    ],
)
def test_malformed_strings_are_refused(text, problem):
    with pytest.raises(UserError) as error:
        parse(text)
    assert repr(text) in str(error.value)
    assert problem in str(error.value)


def test_unknown_interpolation_is_refused():
    with pytest.raises(UserError, match="'lanczos'.*bilinear, bicubic, random"):
        parse(RECIPE, interpolation="lanczos")
