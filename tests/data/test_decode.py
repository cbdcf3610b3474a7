"""Decoding: every kind of file, the same pixels by both ways, broken files refused with their reason."""

import io

import numpy as np
import pytest
import simplejpeg
from photo import encode, photo
from PIL import Image
from pipelines import evaluation, training

from cswin.data.images.decode import EncodedImage, as_frame, decode_rgb
from cswin.errors import BadImage


def pixels(image) -> np.ndarray:
    return np.asarray(image).astype(np.int64)


def by_pillow(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


KINDS = {
    "4:4:4": {"subsampling": 0}, "4:2:2": {"subsampling": 1}, "4:2:0": {"subsampling": 2}, "progressive": {"progressive": True},
    "restart": {"restart_marker_blocks": 2}, "rgb": {"keep_rgb": True}, "coarse": {"quality": 1}, "fine": {"quality": 100},
}  # fmt: skip


@pytest.mark.parametrize("size", [(61, 43), (8, 8), (1, 1), (33, 200)])
@pytest.mark.parametrize("kind", KINDS)
def test_usual_jpegs_have_the_pixels_that_pillow_finds(kind, size, monkeypatch):
    data = encode(photo(*size), "JPEG", **KINDS[kind])
    expected = by_pillow(data)
    monkeypatch.setattr(Image, "open", None)  # not asked
    image = EncodedImage(data)
    assert image.size == size and image.is_jpeg
    assert image.whole("RGB").tobytes() == expected.tobytes()
    np.testing.assert_array_equal(image.frame("RGB"), np.asarray(expected))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_whole_images_and_frames_in_both_modes(kind, mode):
    data = encode(photo(40, 30), kind)
    expected = Image.open(io.BytesIO(data)).convert(mode)
    assert EncodedImage(data).whole(mode).tobytes() == expected.tobytes()
    frame = EncodedImage(data).frame(mode)
    assert (frame.shape, frame.dtype, frame.flags.c_contiguous) == ((30, 40, len(mode)), np.uint8, True)
    np.testing.assert_array_equal(frame, as_frame(expected))


def test_memory_is_kept_but_never_shared_between_images():
    files = [encode(photo(60 - 7 * seed, 40, seed), "JPEG") for seed in range(5)]
    images = [decode_rgb(data) for data in files]
    for image, data in zip(images, files, strict=True):
        assert image.tobytes() == by_pillow(data).tobytes()


def test_grey_jpegs_through_the_quick_way():
    data = encode(photo(30, 20).convert("L"), "JPEG")
    assert decode_rgb(data).tobytes() == by_pillow(data).tobytes()


def test_damage_is_judged_by_pillow_alone():
    """A changed byte: the same pixels, or the same refusal, with and without the quick way."""
    good, rng = encode(photo(64, 48), "JPEG"), np.random.default_rng(1)
    refused_by_quick = differing = 0
    for _ in range(150):
        data = bytearray(good)
        data[int(rng.integers(160, len(good) - 2))] = int(rng.integers(256))
        data = bytes(data)
        try:
            expected = by_pillow(data).tobytes()
        except Exception:
            expected = None
        try:
            simplejpeg.decode_jpeg(data)
        except ValueError:
            refused_by_quick += 1
        try:
            found = decode_rgb(data).tobytes()
        except BadImage:
            found = None
        differing += found != expected
    assert differing == 0
    assert refused_by_quick > 20


def test_decodes_jpeg_and_png():
    image = photo(60, 40)
    assert decode_rgb(encode(image)).tobytes() == image.tobytes()
    jpeg = decode_rgb(encode(image, "JPEG", quality=95))
    assert (jpeg.mode, jpeg.size) == ("RGB", (60, 40))
    assert np.abs(pixels(jpeg) - pixels(image)).mean() < 4


def test_decodes_cmyk_jpeg():
    image = photo(64, 48)
    decoded = decode_rgb(encode(image.convert("CMYK"), "JPEG", quality=95, subsampling=0))
    assert decoded.mode == "RGB"
    assert np.abs(pixels(decoded) - pixels(image)).mean() < 4


def test_decodes_grey_palette_and_transparency():
    image = photo(20, 16)
    grey = image.convert("L")
    assert decode_rgb(encode(grey)).tobytes() == grey.convert("RGB").tobytes()
    palette = image.quantize(32)
    assert decode_rgb(encode(palette)).tobytes() == palette.convert("RGB").tobytes()
    assert decode_rgb(encode(palette, transparency=bytes(range(32)))).tobytes() == palette.convert("RGB").tobytes()
    assert decode_rgb(encode(image.convert("RGBA"))).tobytes() == image.tobytes()
    assert decode_rgb(encode(grey.convert("LA"))).tobytes() == grey.convert("RGB").tobytes()
    bilevel = image.convert("1")
    assert decode_rgb(encode(bilevel)).tobytes() == bilevel.convert("RGB").tobytes()


def test_16_bit_grey_keeps_its_high_byte():
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    decoded = pixels(decode_rgb(encode(Image.fromarray(values))))
    np.testing.assert_array_equal(decoded, np.repeat((values >> 8)[..., None], 3, axis=2))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_and_orientation_change_nothing():
    plain = encode(photo(32, 24), "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    for data in (
        encode(photo(32, 24), "JPEG", exif=exif),
        encode(photo(32, 24), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    ):
        assert data != plain
        assert decode_rgb(data).tobytes() == decode_rgb(plain).tobytes()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"no image at all", "cannot identify"),
        (encode(photo(64, 64), "JPEG")[:900], "truncated"),
        (encode(photo(64, 64), "PNG")[:900], "truncated"),
        (encode(photo(64, 64), "JPEG")[:30], "does not decode"),
        (encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "32 bits"),
    ],
)
def test_bad_files_are_refused_with_their_reason(data, reason):
    for use in (decode_rgb, evaluation(8), lambda data: training(8)(data, np.random.default_rng(0))):
        with pytest.raises(BadImage, match=reason):
            use(data)


def test_huge_images_are_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadImage, match="refused"):
        decode_rgb(encode(photo(40, 40)))
