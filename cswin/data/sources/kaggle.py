"""Kaggle's download of ImageNet: `ILSVRC/Data/CLS-LOC` with train/ by class and a flat val/, as zip, tar.gz or folder.

`LOC_val_solution.csv` names the class of each validation image. It is in the zip, and lies beside a tar.gz or a folder.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from cswin.data.sources.members import identify_folder, members, open_zip
from cswin.data.sources.source import LISTED, SPLITS, Entry, Source, identify
from cswin.data.sources.tar_reader import is_zip
from cswin.errors import UserError

SOLUTION = "LOC_val_solution.csv"
_TOPS = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
_IMAGE = re.compile(r"(?:(?:.*/)?Data/CLS-LOC/|CLS-LOC/)?(train|val)/(?:(n\d{8})/)?([^/.][^/]*)")
_ROW = re.compile(r"(n\d{8})( .*)?")


class Kaggle(Source):
    """The competition's files (imagenet-object-localization-challenge). Annotations and the test images are left out."""

    kind = "kaggle"
    inputs = {"path": f"Kaggle's zip or tar.gz, or a folder that holds ILSVRC/; {SOLUTION} is in the zip or lies beside it"}
    called = f"Kaggle's layout ({SOLUTION} names the classes of the validation images)"
    in_archive = re.compile(
        r"(.*/)?(Data|Annotations|ImageSets)/CLS-LOC/.*|LOC_\w+\.(csv|txt)|.*_object_localization.*\.tar\.gz"
    )
    in_folder = re.compile(r"(.*/)?CLS-LOC/.*|(.*/)?val/ILSVRC2012_val_\d{8}\.JPEG|LOC_\w+\.csv")

    def __init__(self, path: Path):
        self.path = path
        if path.is_dir():
            self.root = next((path / top for top in _TOPS if (path / top).is_dir()), path)

    @property
    def title(self) -> str:
        return self.path.name

    def identity(self) -> dict[str, dict[str, Any]]:
        return {"path": identify_folder(self.root, SPLITS) if self.path.is_dir() else identify(self.path)}

    @cached_property
    def solution(self) -> dict[str, str]:
        """WNID by the name of each validation image, without its suffix; read once."""
        place, text = self._solution_text()
        classes = {}
        for number, row in enumerate(csv.reader(io.StringIO(text, newline="")), 1):
            match = _ROW.fullmatch(row[1]) if len(row) == 2 else None
            if number > 1 and row and match is None:
                raise UserError(
                    f"{place}: line {number} names no image and class ({','.join(row)[:80]!r}); fetch the file again"
                )
            if match:
                classes[row[0]] = match[1]
        if not classes:
            raise UserError(f"{place}: names no validation images; fetch the file again")
        return classes

    def entries(self, cursor: dict[str, Any] | None = None, splits: Sequence[str] = SPLITS) -> Iterator[Entry]:
        if "val" in splits:
            _ = self.solution  # before 150 GB are read
        root, folders = (self.root, SPLITS) if self.path.is_dir() else (self.path, ())
        for member in members(root, cursor, lambda name: _IMAGE.fullmatch(name) is not None, folders):
            if member.name.endswith(".tar.gz"):
                raise UserError(
                    f"{member.place}: is an archive in an archive; unpack {self.path.name}, and set data.path to this file"
                )
            match = _IMAGE.fullmatch(member.name)
            if match and match[1] in splits:
                class_name = match[2] or self._class_of(match[1], match[3], member.place)
                yield Entry(match[1], class_name, match[3], member.place, member.data, member.after)

    def complete(self, counts: dict[str, int]) -> dict[str, Any]:
        found = {split: sum(n for folder, n in counts.items() if folder.startswith(f"{split}/")) for split in SPLITS}
        if not found["train"] or found["val"] != len(self.solution):
            raise UserError(
                f"{self.path}: holds {found['train']:,} training and {found['val']:,} validation images, {SOLUTION} names "
                f"{len(self.solution):,} validation images; fetch it again"
            )
        unknown = sorted({folder[4:] for folder in counts if folder.startswith("val/") and f"train/{folder[4:]}" not in counts})
        if unknown:
            raise UserError(f"{self.path}: {SOLUTION} names classes without training images: {', '.join(unknown[:LISTED])}")
        return {}

    def _class_of(self, split: str, name: str, place: str) -> str:
        class_name = self.solution.get(name.rpartition(".")[0]) if split == "val" else None
        if class_name is None:
            reason = f"{SOLUTION} does not name it" if split == "val" else "it is in no class folder"
            raise UserError(f"{place}: its class is unknown, {reason}; is the download complete?")
        return class_name

    def _solution_text(self) -> tuple[str, str]:
        """Place and content of the CSV: of the one in the zip, else of the one beside the archive or above the images."""
        if is_zip(self.path):
            with open_zip(self.path) as archive:
                if name := next((name for name in archive.namelist() if name.rpartition("/")[2] == SOLUTION), None):
                    return f"{self.path}: {name!r}", archive.read(name).decode("utf-8-sig", "replace")
        folders = [self.root, *list(self.root.absolute().parents)[:4]] if self.path.is_dir() else [self.path.absolute().parent]
        for file in (folder / SOLUTION for folder in folders):
            if file.is_file():
                return str(file), file.read_text(encoding="utf-8-sig", errors="replace")
        raise UserError(
            f"{self.path}: {SOLUTION} is missing, which names the classes of the validation images; put it beside, unpacked"
        )
