"""Labelled images for evaluation from a converted dataset, one shard, a folder, or an archive."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from cswin.data.sources.archive import Archive
from cswin.data.sources.folder import class_folders, class_images, read_file
from cswin.data.sources.source import LISTED, listed
from cswin.data.store.dataset import Dataset, read_rows
from cswin.data.store.shard_reader import read_image, read_index
from cswin.errors import UserError
from cswin.layout import DATASET

Row = tuple[int, int, bytes] | tuple[int, int, bytes, str]  # position, label, file content; and the file's name if it has one


@dataclass(frozen=True)
class Labelled:
    """Labelled images.

    Attributes:
        rows: starts to read a slice of all images; can be called again.
        images: their number; None if it is only known after reading.
        manifest: hash of the dataset's manifest; None for other sources.
    """

    rows: Callable[[slice], Iterator[Row]]
    images: int | None = None
    manifest: str | None = None


def open_labelled(path: Path, split: str, class_names: Sequence[str]) -> Labelled:
    """The images at `path`, labelled by the position of their class in `class_names`.

    Args:
        path: a dataset.json (or the folder that holds it), a .mindrecord file, a folder with one folder per class (beside it or
            below a folder named after the split), or a tar or tar.gz with <split>/<class>/.
        split: train or val.
        class_names: of the checkpoint.

    Raises:
        UserError: if there is no such source, or it has a class that the checkpoint does not have.
    """
    path = Path(path)
    if path.is_dir():
        path = path / DATASET if (path / DATASET).is_file() else path
    if path.is_dir():
        return _folder(path / split if (path / split).is_dir() else path, class_names)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file or folder; give a dataset.json, .mindrecord, folder or archive")
    if path.suffix == ".json":
        return _dataset(path, split, class_names)
    if path.suffix == ".mindrecord":
        return _shard(path, class_names)

    def archive_rows(part: slice) -> Iterator[Row]:
        return islice(_archive_rows(path, split, class_names), part.start, part.stop, part.step)

    return Labelled(archive_rows)


def _dataset(path: Path, split: str, class_names: Sequence[str]) -> Labelled:
    dataset = Dataset.load(path)
    if tuple(dataset.class_names) != tuple(class_names):
        _refuse_classes(path, dataset.class_names, class_names)
        raise UserError(f"{path}: holds {len(dataset.class_names)} classes, the checkpoint knows {len(class_names)}; evaluate on the "
                        "data that it was trained for, or on a folder or archive with a part of its classes")  # fmt: skip
    images = dataset.images(split)
    return Labelled(lambda part: read_rows(dataset, split, np.arange(images)[part]), images, dataset.manifest_hash)


def _shard(path: Path, class_names: Sequence[str]) -> Labelled:
    index = read_index(path)
    if len(index.labels) and index.labels.max() >= len(class_names):
        raise UserError(f"{path}: holds the label {index.labels.max()}, the checkpoint knows {len(class_names)} classes")

    def rows(part: slice) -> Iterator[Row]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            for row, label in list(enumerate(index.labels))[part]:
                yield (
                    index.first + row,
                    int(label),
                    read_image(descriptor, path, int(index.offsets[row]), int(index.sizes[row])),
                )
        finally:
            os.close(descriptor)

    return Labelled(rows, len(index.labels))


def _folder(folder: Path, class_names: Sequence[str]) -> Labelled:
    _refuse_classes(folder, class_folders(folder), class_names)
    labels = {name: label for label, name in enumerate(class_names)}
    found = list(enumerate(class_images(folder)))

    def rows(part: slice) -> Iterator[Row]:
        for position, file in found[part]:
            yield position, labels[file.parent.name], read_file(file), str(file)

    return Labelled(rows, len(found))


def _archive_rows(path: Path, split: str, class_names: Sequence[str]) -> Iterator[Row]:
    labels = {name: label for label, name in enumerate(class_names)}
    position = None
    for position, entry in enumerate(Archive(path).entries(splits=[split])):
        _refuse_classes(path, [entry.class_name], class_names)
        yield position, labels[entry.class_name], entry.data, entry.place
    if position is None:
        raise UserError(f"{path}: holds no image under {split}/<class>/")


def _refuse_classes(path: Path, found: Sequence[str], known: Sequence[str]) -> None:
    strange = sorted(set(found) - set(known))
    if strange:
        raise UserError(f"{path}: holds classes that the checkpoint does not know: {listed(strange)}; it knows "
                        f"{', '.join(known[:LISTED])}{' …' if len(known) > LISTED else ''}")  # fmt: skip
