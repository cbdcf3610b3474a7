"""Prediction on image files: the result for a file is its classes or an error message; an error does not stop the others."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Container, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps
from scipy.special import softmax

from cswin.checkpoint import Checkpoint
from cswin.class_names import words
from cswin.data.images.decode import as_frame, decode_rgb
from cswin.data.images.evaluation import EvalTransform
from cswin.data.images.preprocessing import Preprocessing
from cswin.distributed.backend import Backend
from cswin.errors import BadImage, UserError

MOST_PIXELS = 64_000_000  # of a resized image: 192 MB


@dataclass(frozen=True)
class Guess:
    """One class that an image may show: its number, its name, what that is in words, its probability."""

    label: int
    name: str
    words: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The result for a file: the best classes, most probable first, and the pooled features (C,) float32, which the head classifies;
    or `error` with the reason why there are none."""

    path: Path
    guesses: tuple[Guess, ...] = ()
    features: np.ndarray | None = None
    error: str | None = None


class ImageReader:
    """Makes network inputs from image files with the checkpoint's preprocessing.

    Args:
        preprocessing: of the checkpoint.
        upright: rotate images by their EXIF orientation, as viewers do. Training, evaluation and published ImageNet figures
            ignore it: use False for comparisons with them.
    """

    def __init__(self, preprocessing: Preprocessing, upright: bool = True):
        if preprocessing.channels not in (1, 3):
            raise UserError(f"the network takes images of {preprocessing.channels} channels, image files have 1 or 3")
        self.transform = EvalTransform(preprocessing)
        self.upright = upright

    def __call__(self, path: Path) -> np.ndarray:
        """The file as (channels, size, size) float32.

        Raises:
            BadImage: if it cannot be read or decoded.
        """
        if path.exists() and not path.is_file():
            raise BadImage("is not a regular file")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror}") from error
        image = decode_rgb(data)
        if self.upright:
            _turn_upright(image, data)
        image = image if image.mode == self.transform.mode else image.convert(self.transform.mode)
        short, long = sorted(image.size)
        if self.transform.short_side**2 * long / short > MOST_PIXELS:
            raise BadImage(f"image is {image.width} x {image.height} pixels: too narrow to be resized to a short side of "
                           f"{self.transform.short_side} pixels")  # fmt: skip
        return self.transform.normalise(self.transform.resize_crop(as_frame(image)))


def _turn_upright(image: Image.Image, data: bytes) -> None:
    """Rotate a decoded image by the EXIF orientation of its file; damaged metadata are ignored."""
    with contextlib.suppress(Exception):  # Pillow's EXIF parser raises many kinds of exceptions for damaged input
        with Image.open(io.BytesIO(data)) as header:
            image.getexif()[ExifTags.Base.Orientation] = header.getexif().get(ExifTags.Base.Orientation, 1)
        ImageOps.exif_transpose(image, in_place=True)


class Classifier:
    """A checkpoint's network, compiled once for one batch size.

    Args:
        checkpoint: the network.
        batch_size: of the compiled graph; smaller batches are padded.
        backend: of the device.
        which: set of weights, see `Checkpoint.select`.
    """

    def __init__(self, checkpoint: Checkpoint, batch_size: int, backend: Backend, which: str | None = None):
        from cswin.inference import Predictor

        self.which, weights = checkpoint.select(which)
        self.predictor = Predictor(checkpoint.record.architecture, batch_size, backend=backend)
        self.predictor.compile_cached(wanted=backend.device == "CPU")
        self.weights = self.predictor.on_device(weights)
        self.batch_size, self.class_names = batch_size, checkpoint.record.class_names

    def outputs(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, C, H, W) float32, n up to the batch size -> pooled features (n, channels) float32, probabilities (n, classes) float64.

        Raises:
            UserError: if they are not finite.
        """
        features, logits = self.predictor.outputs(self.weights, images)
        logits = logits.astype(np.float64)
        if not np.isfinite(logits).all():
            raise UserError(f"the network's outputs are not finite with the {self.which} weights: its training has diverged, take an "
                            "earlier checkpoint")  # fmt: skip
        return features, softmax(logits, axis=1)

    def guesses(self, probabilities: np.ndarray, top_k: int) -> list[tuple[Guess, ...]]:
        """The best classes of each image; classes with equal probability are in the order of their numbers."""
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
        return [
            tuple(Guess(int(i), self.class_names[i], words(self.class_names[i]), float(row[i])) for i in labels)
            for row, labels in zip(probabilities, best, strict=True)
        ]


def find_images(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Files as they are given, and the images in folders at any depth, also through links: files with a suffix that Pillow reads, and
    files without one that begin like an image. Each once, folders in sorted order. Hidden files and folders inside are left out.

    Returns:
        The images, and the files in folders that were ignored.

    Raises:
        UserError: if a folder has no image.
    """
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found: dict[Path, None] = {}
    passed_over: dict[Path, None] = {}
    for given in paths:
        files = list(_files_in(given)) if given.is_dir() else [given]
        images = [file for file in files if file == given or _is_image(file, suffixes)]
        if not images:
            raise UserError(f"{given}: holds no image; files are recognised by suffixes such as .jpg and .png")
        found |= dict.fromkeys(images)
        passed_over |= dict.fromkeys(files)
    return list(found), [file for file in passed_over if file not in found]


def _files_in(folder: Path) -> Iterator[Path]:
    """Visible files. Links are followed, but each folder is read only once."""

    def refuse(error: OSError) -> None:
        raise UserError(
            f"{error.filename}: cannot be read ({error.strerror}); check its permissions, or leave it out"
        ) from error

    seen = set()
    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        if os.path.realpath(root) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(root))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root) / name for name in sorted(files) if not name.startswith("."))


def _is_image(file: Path, suffixes: Container[str]) -> bool:
    if file.suffix or not file.is_file():  # opening a pipe would block
        return file.suffix.lower() in suffixes
    try:
        Image.open(file).close()  # reads the first bytes
    except Exception:  # not an image, or an image that Pillow cannot parse
        return False
    return True


def predict(
    paths: Iterable[Path], classifier: Classifier, reader: ImageReader, top_k: int, workers: int
) -> Iterator[Prediction]:
    """One prediction per path, in the same order; while the network computes a batch, threads decode the next ones.

    Args:
        paths: files.
        top_k: classes per image.
        workers: decoding threads.
    """
    paths = iter(paths)
    with ThreadPoolExecutor(workers) as pool:

        def submit() -> list[tuple[Path, Future]]:
            return [(path, pool.submit(reader, path)) for path in islice(paths, classifier.batch_size)]

        pending = submit()
        while pending:
            batch, pending = pending, submit()
            yield from _predict_batch(batch, classifier, top_k)


def _predict_batch(batch: list[tuple[Path, Future]], classifier: Classifier, top_k: int) -> list[Prediction]:
    images, results = [], []
    for path, future in batch:
        try:
            images.append(future.result())
            results.append(Prediction(path))
        except BadImage as error:
            results.append(Prediction(path, error=str(error)))
        except Exception as error:  # an unexpected error in one file must not stop the others
            results.append(Prediction(path, error=f"cannot be decoded: {type(error).__name__}: {error}"))
    found = iter(())
    if images:
        features, probabilities = classifier.outputs(np.stack(images))
        found = zip(classifier.guesses(probabilities, top_k), features, strict=True)
    return [result if result.error else Prediction(result.path, *next(found)) for result in results]


def save_features(path: Path, features: Mapping[str, np.ndarray]) -> None:
    """Write an NPZ file: `files` (n,) text, `features` (n, channels) float32.

    Args:
        path: the file, see `cswin.atomic`.
        features: pooled features (channels,) by the name of the image's file.
    """
    np.savez(path, files=np.array([*features], np.str_), features=np.array([*features.values()], np.float32))
