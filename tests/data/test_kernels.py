"""Compiled kernels: resizing, affine transforms and normalisation equal Pillow and NumPy to the bit."""

import itertools
from importlib import import_module

import numpy as np
import pytest
from photo import encode, photo, planes
from PIL import Image
from pipelines import evaluation, training

import cswin.compiled
from cswin.data.augment.transforms import compile_kernels
from cswin.data.images.affine import affine, rotate
from cswin.data.images.kernels import mix_rounded, normalise
from cswin.data.images.resample import CropBox, resize, resize_crop
from cswin.data.loader.workers import worker_pool

FILTERS = {True: Image.Resampling.BICUBIC, False: Image.Resampling.BILINEAR}
FILL = (124, 116, 104)


def noise(width, height, channels=3, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values if channels == 3 else values[..., 0])


def rows_then_columns(image, size, resample, box=None):
    """By Pillow in two calls: in one, Pillow 13 begins with the columns where an image is tall."""
    left, top, right, bottom = box or (0, 0, *image.size)
    return image.resize((size[0], image.height), resample, box=(left, 0, right, image.height)).resize(
        size, resample, box=(0, top, size[0], bottom)
    )


@pytest.mark.parametrize("bicubic", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_resized_crops_equal_pillow(channels, bicubic):
    """Sizes from 1 pixel up, smaller and larger, mirrored or not; noise has the values beyond 0 and 255 that must be cut off."""
    rng = np.random.default_rng(channels)
    image = noise(150, 110, channels)
    frame = np.array(image).reshape(110, 150, channels)
    for number in range(60):
        width, height = int(rng.integers(1, 151)), int(rng.integers(1, 111))
        left, top = int(rng.integers(0, 151 - width)), int(rng.integers(0, 111 - height))
        size = int(rng.integers(1, 130)), int(rng.integers(1, 130))
        part = image.crop((left, top, left + width, top + height))
        expected = planes(rows_then_columns(part, size, FILTERS[bicubic]))
        mirrored = number % 2 == 1
        result = resize_crop(frame, CropBox(left, top, width, height), size, bicubic=bicubic, mirrored=mirrored)
        assert result.flags.c_contiguous
        np.testing.assert_array_equal(result, expected[..., ::-1] if mirrored else expected, err_msg=f"{part.size} to {size}")


@pytest.mark.parametrize("bicubic", [True, False])
def test_windows_and_broken_regions_equal_pillow(bicubic):
    rng = np.random.default_rng(0)
    image = photo(150, 110)
    for _ in range(60):
        left, right = np.sort(rng.uniform(0, 150, 2))
        top, bottom = np.sort(rng.uniform(0, 110, 2))
        size = int(rng.integers(2, 130)), int(rng.integers(2, 130))
        x, y = (int(rng.integers(0, length)) for length in size)
        width, height = int(rng.integers(1, size[0] - x + 1)), int(rng.integers(1, size[1] - y + 1))
        expected = rows_then_columns(image, size, FILTERS[bicubic], (left, top, right, bottom))
        result = resize(
            np.array(image), size, bicubic=bicubic, region=(left, top, right, bottom), window=CropBox(x, y, width, height)
        )
        np.testing.assert_array_equal(result, planes(expected.crop((x, y, x + width, y + height))))


def test_a_crop_is_an_image_of_its_own_and_memory_around_it_does_not_matter():
    image = np.array(noise(90, 70))
    box = CropBox(20, 10, 37, 41)
    cut = np.ascontiguousarray(image[10:51, 20:57])
    expected = resize(cut, (24, 24), bicubic=True)
    image[:10], image[51:], image[:, :20], image[:, 57:] = 255, 255, 255, 255
    np.testing.assert_array_equal(resize_crop(image, box, (24, 24), bicubic=True), expected)


MATRICES = {
    "shear in x": lambda rng, w, h: (1, rng.uniform(-1, 1), 0, 0, 1, 0),
    "shear in y": lambda rng, w, h: (1, 0, 0, rng.uniform(-1, 1), 1, 0),
    "shift in x": lambda rng, w, h: (1, 0, rng.uniform(-w, w), 0, 1, 0),
    "shift in y": lambda rng, w, h: (1, 0, 0, 0, 1, rng.uniform(-h, h)),
    "whole pixels": lambda rng, w, h: (1, 0, int(rng.integers(-w, w + 1)), 0, 1, 0),
    "half pixels": lambda rng, w, h: (1, 0, 0, 0, 1, int(rng.integers(-h, h + 1)) + 0.5),
    "out of sight": lambda rng, w, h: (1, 0, 2 * w, 0, 1, 0),
    "columns out of step": lambda rng, w, h: (1, 0, -(2.0**-54), 0, 1, 0),  # rounded away for all but the first pixel
    "smaller": lambda rng, w, h: (rng.uniform(1, 3), 0, 0, 0, rng.uniform(1, 3), 0),
    "anything": lambda rng, w, h: tuple(rng.normal(0, 1, 6) * (1, 1, w, 1, 1, h)),
}


@pytest.mark.parametrize("kind", MATRICES)
def test_affine_transforms_equal_pillow(kind):
    rng = np.random.default_rng(0)
    for number in range(40):
        width, height = int(rng.integers(1, 60)), int(rng.integers(1, 60))
        image = (noise if number % 2 else photo)(width, height, seed=number)
        bicubic, matrix = number % 4 < 2, MATRICES[kind](rng, width, height)
        expected = image.transform(image.size, Image.Transform.AFFINE, matrix, resample=FILTERS[bicubic], fillcolor=FILL)
        np.testing.assert_array_equal(
            affine(planes(image), matrix, FILL, bicubic=bicubic), planes(expected), err_msg=f"{image.size}, {matrix}"
        )


@pytest.mark.parametrize("degrees", [0, 90, 180, -90, 360, 450, 29.99, -30, 45, 123.4])
@pytest.mark.parametrize("size", [(40, 40), (40, 31), (1, 5)])
def test_rotations_equal_pillow(size, degrees):
    image = photo(*size)
    for bicubic in (True, False):
        expected = planes(image.rotate(degrees, resample=FILTERS[bicubic], fillcolor=FILL))
        np.testing.assert_array_equal(rotate(planes(image), degrees, FILL, bicubic=bicubic), expected)


def test_normalisation_rounds_twice():
    """A product and a sum in float32, as NumPy computes them: not fused, whatever the processor offers."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 33, 47), dtype=np.uint8)
    factor, offset = rng.normal(0, 1, 3).astype(np.float32), rng.normal(0, 1, 3).astype(np.float32)
    out = np.empty(pixels.shape, np.float32)
    normalise(pixels, factor, offset, out)
    expected = pixels.astype(np.float32) * factor[:, None, None] + offset[:, None, None]
    assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize("own", [0.5, 0.25, 0.3712, 1 - 1e-7, 0.0])
def test_mixed_bytes_are_rounded_as_numpy_does(own):
    """All pairs of values; at 0.5 and 0.25 many sums lie half-way between two whole numbers."""
    image, partner = (grid.astype(np.uint8)[None] for grid in np.meshgrid(np.arange(256), np.arange(256)))
    expected = image.astype(np.float32) * np.float32(own) + partner.astype(np.float32) * np.float32(1 - own)
    mixed = image.copy()
    mix_rounded(mixed, partner, own, 1 - own)
    np.testing.assert_array_equal(mixed, np.rint(expected).astype(np.uint8))


def test_kernels_compile_without_a_folder_for_their_code(monkeypatch):
    """numba refuses `cache=True` where it can write nowhere."""
    njit = cswin.compiled.njit

    def refusing(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(cswin.compiled, "njit", refusing)
    assert cswin.compiled.compiled(lambda x: x + 1)(2) == 3


CALLED = {  # from Python; what they call is compiled into them
    "affine": ["transposed", "_shift_rows", "_affine"],
    "kernels": ["look_up", "histograms", "_luma", "smooth", "blend", "normalise", "mix_rounded"],
    "resample": ["_weights", "_resize"],
}


def versions():
    """How often each kernel was compiled, for how many kinds of arguments."""
    modules = {module: import_module(f"cswin.data.images.{module}") for module in CALLED}
    return {name: len(getattr(modules[module], name).signatures) for module, names in CALLED.items() for name in names}


def test_worker_processes_inherit_the_kernels():
    with worker_pool("process", 1) as pool:
        assert set(pool.submit(versions).result().values()) == {1}


def test_one_version_of_each_kernel_serves_all():
    """Colour and grey, training and evaluation, files that Pillow decodes and others."""
    compile_kernels()
    before = versions()
    files = [encode(photo(40, 30)), encode(photo(40, 30), "JPEG"), encode(photo(80, 80), "JPEG"), encode(noise(9, 9, 1))]
    for channels, data in itertools.product((1, 3), files):
        rng = np.random.default_rng(0)
        transform = training(16, channels=channels, rand_augment="rand-m9-n9-p1-inc1", erase_prob=1.0)
        for _ in range(5):
            transform(data, rng)
        evaluation(16, channels=channels, interpolation="bilinear")(data)
    assert versions() == before
