"""Labelled images for evaluation from a converted dataset, one shard, a folder, or an archive."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from cswin.class_names import match_classes, read_class_names
from cswin.data.sources.folder import class_folders, class_images, read_file
from cswin.data.sources.recognise import open_source
from cswin.data.store.dataset import Dataset, read_rows
from cswin.data.store.manifest import load_summary, read_manifest
from cswin.data.store.shard_reader import read_image, read_index
from cswin.errors import UserError
from cswin.layout import DATASET

Row = tuple[int, int, bytes] | tuple[int, int, bytes, str]  # position, label, file content; and the file's name if it has one


@dataclass(frozen=True)
class Labelled:
    """Labelled images.

    Attributes:
        rows: starts reading a part of them (a slice of all); can be called again.
        images: how many, None where only reading tells.
        manifest: hash of the dataset's manifest, None for others.
        note: how its classes were matched with the checkpoint's; None: they are the same in the same order.
        outputs: of the checkpoint, those that the data's classes are; None where only reading tells.
        names: reads the names of the files, by position; None: there are none, or only reading tells.
    """

    rows: Callable[[slice], Iterator[Row]]
    images: int | None = None
    manifest: str | None = None
    note: str | None = None
    outputs: frozenset[int] | None = None
    names: Callable[[], Mapping[int, str]] | None = None


def open_labelled(path: Path, split: str, class_names: Sequence[str], classes_from: Path | None = None) -> Labelled:
    """What lies at `path`, labelled by the outputs of a checkpoint, see `match_classes`.

    Args:
        path: a dataset.json (or the folder that holds it), a .mindrecord file, a folder with one folder per class (beside it or
            below a folder named after the split), or a tar or tar.gz with <split>/<class>/.
        split: train or val.
        class_names: of the checkpoint.
        classes_from: names of the classes of a .mindrecord, which holds their numbers only; see `read_class_names`.

    Raises:
        UserError: if there is nothing of the kind, or its classes cannot be matched with the checkpoint's.
    """
    path = Path(path)
    if (path.suffix == ".mindrecord" and path.is_file()) != (classes_from is not None):
        raise UserError(
            f"{path}: only a .mindrecord needs --classes-from, other data know the names of their classes"
            if classes_from
            else f"{path}: a .mindrecord does not know the names of its classes: give its dataset.json instead, or say who knows them, "
            "--classes-from FILE (a dataset.json, manifest.json, checkpoint, or text with one name per line)"
        )
    if path.is_dir():
        path = path / DATASET if (path / DATASET).is_file() else path
    if path.is_dir():
        return _folder(path / split if (path / split).is_dir() else path, class_names)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file or folder; give a dataset.json, .mindrecord, folder or archive")
    if path.suffix == ".json":
        return _dataset(path, split, class_names)
    if path.suffix == ".mindrecord":
        return _shard(path, read_class_names(classes_from), class_names)

    def archive_rows(part: slice) -> Iterator[Row]:
        return islice(_archive_rows(path, split, class_names), part.start, part.stop, part.step)

    return Labelled(archive_rows)


def _dataset(path: Path, split: str, class_names: Sequence[str]) -> Labelled:
    dataset = Dataset.load(path)
    outputs, note = _outputs(path, dataset.class_names, class_names)
    positions = np.arange(dataset.images(split))
    if outputs.min() < 0:
        positions = np.flatnonzero(outputs[dataset.index(split).labels] >= 0)

    def rows(part: slice) -> Iterator[Row]:
        for position, label, data in read_rows(dataset, split, positions[part]):
            yield position, int(outputs[label]), data

    known = frozenset(outputs[outputs >= 0].tolist())
    return Labelled(rows, len(positions), dataset.manifest_hash, note, known, lambda: _stored_names(dataset, split))


def _stored_names(dataset: Dataset, split: str) -> dict[int, str]:
    """From the manifest."""
    path = dataset.path.parent / dataset.summary
    summary = load_summary(path)
    if summary.manifest_hash != dataset.manifest_hash:
        raise UserError(f"{path}: is of other images than {dataset.path}; run `snakemake {dataset.path}`")
    paths = (row.path for row in read_manifest(path.parent / summary.rows_file, summary))
    return dict(enumerate(PurePosixPath(name).name for name in paths if name.startswith(f"{split}/")))


def _shard(path: Path, names: Sequence[str], class_names: Sequence[str]) -> Labelled:
    index = read_index(path)
    if len(index.labels) and index.labels.max() >= len(names):
        raise UserError(f"{path}: holds the label {index.labels.max()}, --classes-from names {len(names)} classes")
    outputs, note = _outputs(path, names, class_names)
    known = np.flatnonzero(outputs[index.labels] >= 0)

    def rows(part: slice) -> Iterator[Row]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            for row in known[part].tolist():
                data = read_image(descriptor, path, int(index.offsets[row]), int(index.sizes[row]))
                yield index.first + row, int(outputs[index.labels[row]]), data
        finally:
            os.close(descriptor)

    return Labelled(rows, len(known), note=note, outputs=frozenset(outputs[index.labels[known]].tolist()))


def _outputs(path: Path, names: Sequence[str], class_names: Sequence[str]) -> tuple[np.ndarray, str | None]:
    """(classes,) int64: the output of each label, -1: none; and how they were matched."""
    labels, note = match_classes(names, class_names, path)
    return np.array([labels.get(name, -1) for name in names]), note


def _folder(folder: Path, class_names: Sequence[str]) -> Labelled:
    labels, note = match_classes(class_folders(folder), class_names, folder)
    found = [(position, file) for position, file in enumerate(class_images(folder)) if file.parent.name in labels]

    def rows(part: slice) -> Iterator[Row]:
        for position, file in found[part]:
            yield position, labels[file.parent.name], read_file(file), str(file)

    names = {position: file.name for position, file in found}
    return Labelled(rows, len(found), note=note, outputs=frozenset(labels.values()), names=lambda: names)


def _archive_rows(path: Path, split: str, class_names: Sequence[str]) -> Iterator[Row]:
    """Its classes are only seen while it is read: none that is strange can be left out."""
    labels: dict[str, int] = {}
    position = None
    for position, entry in enumerate(open_source("archive", [path]).entries(splits=[split])):
        if entry.class_name not in labels:
            labels |= match_classes([entry.class_name], class_names, path)[0]
        yield position, labels[entry.class_name], entry.data, entry.place
    if position is None:
        raise UserError(f"{path}: holds no image under {split}/<class>/")
