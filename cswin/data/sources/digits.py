"""The default dataset: scikit-learn's handwritten digits, packed like ImageNet.

1,797 real 8 x 8 images with 17 grey levels (UCI "Optical Recognition of Handwritten Digits", test part), inside the scikit-learn
package. They are enlarged to 32 x 32 and written as JPEG files into one tar.gz with train/<class>/ and val/<class>/, so the
steps after the archive are the same as for ImageNet.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cswin.atomic import atomic_path
from cswin.data.sources.archive import Archive

if TYPE_CHECKING:
    import numpy as np

SIDE = 32
VAL_IMAGES = 360
SPLIT_SEED = 0
_LEVELS = 16  # largest grey level of the source
# At this quality JPEG changes no pixel by more than 3 of 255 (6 at quality 95).
_JPEG_QUALITY = 98


class Digits(Archive):
    """The archive that `write_digits` makes: a source without inputs."""

    kind = "digits"
    inputs = {}
    in_archive = None
    classes = 10


def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """All digits: (1797, 32, 32) uint8 images, enlarged from 8 x 8 by bicubic interpolation, and (1797,) int64 labels."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * (255 / _LEVELS)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for image in grey]
    return np.stack(large), digits.target


def split_digits(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training (1,437) and for validation (360), stratified by class, always the same; sorted."""
    import numpy as np
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(labels))
    train, val = train_test_split(rows, test_size=VAL_IMAGES, stratify=labels, random_state=SPLIT_SEED)
    return np.sort(train), np.sort(val)


def digit_files() -> Iterator[tuple[str, bytes]]:
    """(path in the archive, JPEG bytes) in the archive's order."""
    from PIL import Image

    images, labels = digit_images()
    for split, rows in zip(("train", "val"), split_digits(labels), strict=True):
        for label in range(10):
            for number, row in enumerate(rows[labels[rows] == label], start=1):
                buffer = io.BytesIO()
                Image.fromarray(images[row]).save(buffer, "JPEG", quality=_JPEG_QUALITY)
                yield f"{split}/{label}/{label}_{number:05d}.JPEG", buffer.getvalue()


def write_digits(output: Path) -> None:
    """Write the archive; the same bytes on every run with the same Pillow, scikit-learn and zlib."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_path(output) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, data in digit_files():
            member = tarfile.TarInfo(name)  # its defaults: mode 644, owner 0, time 0
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
