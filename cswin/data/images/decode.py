"""From the bytes of an image file to pixels.

simplejpeg decodes JPEGs of the usual kinds. It uses the same library and gives the same pixels as Pillow, but it does not read
files in pieces, and its memory is reused from image to image. Pillow decodes all other files and all damaged ones.
"""

from __future__ import annotations

import io
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import simplejpeg
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from cswin.errors import BadImage

_JPEG_START = b"\xff\xd8\xff"
_KEPT_BYTES = 64 << 20  # larger buffers are released
_memory = threading.local()


class EncodedImage:
    """An image file in memory, whose header has been read.

    Attributes:
        size: (width, height) in pixels.
        is_jpeg: whether it can be decoded at 1/2, 1/4 or 1/8.

    Raises BadImage with the reason if the file is empty, no image, or too large. The methods raise it if it is damaged.
    """

    def __init__(self, data: bytes):
        self._data, self._pillow = data, None
        size = _usual_jpeg_size(data)
        if size is None:
            self._pillow = self._open()
            size = self._pillow.size
        self.size = size
        self.is_jpeg = self._pillow is None or isinstance(self._pillow, JpegImageFile)

    def whole(self, mode: str) -> Image.Image:
        """All of it, RGB or L."""
        if self._pillow is None and mode == "RGB":
            return Image.frombytes("RGB", self.size, self.frame(mode))
        return self._load(self._pillow or self._open(), mode)

    def frame(self, mode: str, scale: int = 1) -> np.ndarray:
        """The whole image, RGB or L, a JPEG decoded at 1/`scale`: (height, width, channels) uint8, contiguous.

        Use it at once: the next call in the same thread may overwrite the memory.
        """
        if self._pillow is None and mode == "RGB" and scale == 1:
            try:
                return simplejpeg.decode_jpeg(self._data, "RGB", buffer=_kept_memory(3 * self.size[0] * self.size[1]))
            except ValueError:
                pass  # damaged; Pillow gives the reason
        image = self._pillow or self._open()
        if scale > 1:
            image.draft(None, (self.size[0] // scale, self.size[1] // scale))
        return as_frame(self._load(image, mode))

    def _open(self) -> Image.Image:
        if not self._data:
            raise BadImage("image is empty (0 bytes)")
        with _bad_image_for_pillow_errors(self._data):
            return Image.open(io.BytesIO(self._data))

    def _load(self, image: Image.Image, mode: str) -> Image.Image:
        with _bad_image_for_pillow_errors(self._data):
            image.load()
            if image.mode.startswith("I;16"):
                # Pillow's own conversion would clip at 255.
                image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
            elif image.mode in ("I", "F"):
                raise BadImage(
                    f"image has 32 bits per value (mode {image.mode}) and so no defined white: store it with 8 or 16 bits"
                )
            elif image.mode in ("P", "PA", "LA", "RGBA"):
                # Over RGBA, because that is how Pillow reads a palette with transparency; the colours under it are kept.
                image = image.convert("RGBA").convert("RGB")
            elif mode == "L" and image.mode not in ("L", "RGB"):
                image = image.convert("RGB")
            return image if image.mode == mode else image.convert(mode)


def as_frame(image: Image.Image) -> np.ndarray:
    """(height, width, channels) uint8, contiguous, of an RGB or L image."""
    pixels = np.array(image)
    return pixels.reshape(*pixels.shape[:2], -1)


def decode_rgb(data: bytes) -> Image.Image:
    """Decodes an image file to RGB: JPEG (also CMYK and greyscale), PNG (also palette and 16 bit), and all other formats of Pillow.

    Transparency is dropped. Raises BadImage with the reason for a file that is empty, truncated, damaged or no image.
    """
    return EncodedImage(data).whole("RGB")


def _usual_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG in colour or grey; None for files that Pillow must decode."""
    if not data.startswith(_JPEG_START):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    too_large = Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS
    return None if too_large or colours not in ("YCbCr", "RGB", "Gray") else (width, height)


def _kept_memory(size: int) -> np.ndarray:
    """A buffer of at least `size` bytes, reused by each call in a thread: new memory would cost half as much time as decoding."""
    memory = getattr(_memory, "bytes", None)
    if memory is None or len(memory) < size:
        memory = np.empty(size, np.uint8)
        _memory.bytes = memory if size <= _KEPT_BYTES else None
    return memory[:size]


@contextmanager
def _bad_image_for_pillow_errors(data: bytes) -> Iterator[None]:
    """Turns all exceptions of Pillow into BadImage: its plugins raise many kinds for damaged files."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error) as error:
        raise BadImage(f"image of {len(data)} bytes does not decode: {error}") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"image of {len(data)} bytes is refused: {error}") from error
