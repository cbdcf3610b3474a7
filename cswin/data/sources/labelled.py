"""Labelled images for evaluation, from whatever holds them: a converted dataset, one shard, a folder, an archive."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from cswin.cores import usable_cores
from cswin.data.sources.archive import place
from cswin.data.sources.tar_reader import files, open_archive, read_data
from cswin.data.store.dataset import Dataset, read_rows
from cswin.data.store.scan import image_names
from cswin.data.store.shard_reader import read_image, read_index
from cswin.errors import UserError

LISTED = 10
Row = tuple[int, int, bytes]  # index, label, file content


@dataclass(frozen=True)
class Source:
    """Labelled images.

    Attributes:
        rows: starts reading a part of them (a slice of all); can be called again.
        images: how many, None where only reading tells.
        manifest: hash of the dataset's manifest, None for other sources.
    """

    rows: Callable[[slice], Iterator[Row]]
    images: int | None = None
    manifest: str | None = None


def open_source(path: Path, split: str, class_names: Sequence[str]) -> Source:
    """What lies at `path`, labelled by the position of its class in `class_names`.

    Args:
        path: a dataset.json (or the folder that holds it), a .mindrecord file, a folder with one folder per class (beside it or
            below a folder named after the split), or a tar or tar.gz with <split>/<class>/.
        split: train or val.
        class_names: of the checkpoint.

    Raises:
        UserError: if there is nothing of the kind, or it holds a class that the checkpoint does not know.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "dataset.json" if (path / "dataset.json").is_file() else path
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

    return Source(archive_rows)


def _dataset(path: Path, split: str, class_names: Sequence[str]) -> Source:
    dataset = Dataset.load(path)
    if tuple(dataset.class_names) != tuple(class_names):
        _refuse_classes(path, dataset.class_names, class_names)
        raise UserError(f"{path}: holds {len(dataset.class_names)} classes, the checkpoint knows {len(class_names)}; evaluate on the "
                        "data that it was trained for, or on a folder or archive with a part of its classes")  # fmt: skip
    images = dataset.images(split)
    return Source(lambda part: read_rows(dataset, split, np.arange(images)[part]), images, dataset.manifest_hash)


def _shard(path: Path, class_names: Sequence[str]) -> Source:
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

    return Source(rows, len(index.labels))


def _folder(folder: Path, class_names: Sequence[str]) -> Source:
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not classes:
        raise UserError(f"{folder}: holds no folder per class")
    _refuse_classes(folder, classes, class_names)
    labels = {name: label for label, name in enumerate(class_names)}
    found = [(labels[name], folder / name / file) for name in classes for file in image_names(folder / name)[0]]
    if not found:
        raise UserError(f"{folder}: holds no image")
    numbered = list(enumerate(found))
    return Source(lambda part: ((i, label, file.read_bytes()) for i, (label, file) in numbered[part]), len(found))


def _archive_rows(path: Path, split: str, class_names: Sequence[str]) -> Iterator[Row]:
    labels = {name: label for label, name in enumerate(class_names)}
    top, index = None, 0
    with open_archive(path, usable_cores()) as stream:
        for member in files(path, stream):
            placed = place(path, member, top)
            if placed is None:
                continue
            folder, _, top = placed
            found, class_name = folder.split("/")
            if found != split:
                continue
            _refuse_classes(path, [class_name], class_names)
            yield index, labels[class_name], read_data(path, stream, member)
            index += 1
    if not index:
        raise UserError(f"{path}: holds no image under {split}/<class>/")


def _refuse_classes(path: Path, found: Sequence[str], known: Sequence[str]) -> None:
    strange = sorted(set(found) - set(known))
    if strange:
        more = f" and {len(strange) - LISTED} more" if len(strange) > LISTED else ""
        raise UserError(f"{path}: holds classes that the checkpoint does not know: {', '.join(strange[:LISTED])}{more}; it knows "
                        f"{', '.join(known[:LISTED])}{' …' if len(known) > LISTED else ''}")  # fmt: skip
