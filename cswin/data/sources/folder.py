"""A user's own folder with train/ and val/ by class; the images are not copied."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cswin.data.sources.source import FLAT_VALIDATION, LAYOUT, SORT_VALIDATION, SPLITS, Entry, Source, listed
from cswin.errors import UserError


class Folder(Source):
    """A folder with <split>/<class>/<image>. Hidden files and folders are left out everywhere."""

    kind = "folder"
    inputs = {"folder": "a folder with train/<class>/ and val/<class>/"}
    called = "a folder with train/<class>/ and val/<class>/"
    in_folder = re.compile(r"(train|val)/[^/]+/[^/]+")
    extracts = False

    def __init__(self, folder: Path):
        self.path = folder

    @property
    def title(self) -> str:
        return str(self.path)

    def identity(self) -> dict[str, dict[str, Any]]:
        return {}

    def entries(self, cursor: dict[str, Any] | None = None, splits: Sequence[str] = SPLITS) -> Iterator[Entry]:
        done = cursor["position"] if cursor else 0
        paths = [(split, path) for split in splits if (self.path / split).is_dir() for path in class_images(self.path / split)]
        for number, (split, path) in enumerate(paths[done:], start=done + 1):
            yield Entry(split, path.parent.name, path.name, str(path), read_file(path), {"position": number})


def read_file(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); replace or remove it") from error


def class_images(split: Path) -> list[Path]:
    """All images of a folder of class folders, sorted by class and name.

    Raises:
        UserError: as `class_folders` and `check_class_folders`.
    """
    classes = class_folders(split)
    check_class_folders(split.parent, {split.name: classes})
    return [split / name / file for name in classes for file in image_names(split / name)[0]]


def class_folders(split: Path) -> list[str]:
    """Sorted names of the classes in the folder of a split.

    Raises:
        UserError: if the folder is missing or empty, or has files beside its class folders; if a name is not valid UTF-8.
    """
    entries = [entry for entry in _entries(split) if not entry.name.startswith(".")]
    strays = sorted(entry.name for entry in entries if not entry.is_dir())
    if strays and FLAT_VALIDATION.fullmatch(strays[0]):
        raise UserError(f"{split}: has files beside its class folders: {listed(strays)}; {SORT_VALIDATION}")
    if strays:
        raise UserError(f"{split}: has files beside its class folders: {listed(strays)}; move them away")
    names = sorted(entry.name for entry in entries)
    if not names:
        raise UserError(f"{split}: has no class folders; {LAYOUT}")
    garbled = [name for name in names if not _is_text(name)]
    if garbled:
        raise UserError(f"{split}: names of classes are not readable as UTF-8: {garbled!r}; rename the folders")
    return names


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # bytes that are not UTF-8
        return False
    return True


def check_class_folders(images: Path, classes: dict[str, Sequence[str]]) -> dict[str, int]:
    """Count the files before reading any of them.

    Args:
        images: folder of the splits.
        classes: names of the class folders by split.

    Returns:
        The number of files by split.

    Raises:
        UserError: if a class folder is empty or holds folders.
    """
    totals, empty, nested = {}, [], []
    for split, names in classes.items():
        totals[split] = 0
        for name in names:
            files, folders = image_names(images / split / name)
            totals[split] += len(files)
            empty += [] if files else [f"{split}/{name}"]
            nested += [f"{split}/{name}/{folder}" for folder in folders]
    if nested:
        raise UserError(f"{images}: folders inside of class folders: {listed(nested)}; put all images into the class folder")
    if empty:
        raise UserError(f"{images}: classes without images: {listed(empty)}; add images or remove the folders")
    return totals


def image_names(folder: Path) -> tuple[list[str], list[str]]:
    """Sorted names of the files and of the folders in a class folder, without hidden ones."""
    entries = [entry for entry in _entries(folder) if not entry.name.startswith(".")]
    names = sorted(entry.name for entry in entries if not entry.is_dir())
    return names, sorted(entry.name for entry in entries if entry.is_dir())


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        kaggle = next((p for p in (folder.parent / "Data/CLS-LOC", folder.parent / "ILSVRC/Data/CLS-LOC") if p.is_dir()), None)
        advice = f"this is Kaggle's layout, its images are in {kaggle}; there {SORT_VALIDATION}" if kaggle else LAYOUT
        raise UserError(f"{folder}: cannot be read ({error.strerror}); {advice}") from error
