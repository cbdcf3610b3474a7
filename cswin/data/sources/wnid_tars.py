"""ImageNet-22K: a folder with one tar, or one folder, for each WNID. It has no validation set: a part of the images is held out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cswin.data.sources.members import identify_folder, members
from cswin.data.sources.source import SPLITS, Entry, Source, identify
from cswin.errors import UserError

HELD_OUT = 100  # one image of so many is for validation
_CLASS = re.compile(r"(n\d{8})(\.tar)?")


class WnidTars(Source):
    """The held-out images are drawn by a hash of class and name: the same ones whatever else is there. The first image of a class is
    always for training.
    """

    kind = "wnid_tars"
    inputs = {"path": "a folder with <WNID>.tar or <WNID>/ for each class; one image of 100 is held out for validation"}
    called = "a folder with one tar or folder for each WNID"
    in_folder = re.compile(r"n\d{8}(\.tar|/.*)")

    def __init__(self, path: Path):
        self.path = path
        if not path.is_dir():
            raise UserError(f"{path}: is no folder; it must hold <WNID>.tar or <WNID>/ for each class")
        self.classes = sorted(entry for entry in path.iterdir() if (_CLASS.fullmatch(entry.name)))
        names = [entry.name.partition(".")[0] for entry in self.classes]
        if not names:
            raise UserError(f"{path}: holds no <WNID>.tar and no <WNID>/, as n01440764.tar; check data.path")
        if twice := sorted({name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()):
            raise UserError(f"{path}: {twice[0]} is there as a tar and as a folder; remove one of them")

    @property
    def title(self) -> str:
        return self.path.name

    def identity(self) -> dict[str, dict[str, Any]]:
        return {entry.name: identify_folder(entry) if entry.is_dir() else identify(entry) for entry in self.classes}

    def entries(self, cursor: dict[str, Any] | None = None, splits: Sequence[str] = SPLITS) -> Iterator[Entry]:
        start, before = (cursor["class"], cursor["before"]) if cursor else (0, 0)
        for number, path in enumerate(self.classes[start:], start):
            wnid, inner = path.name.partition(".")[0], cursor["inner"] if cursor and number == start else None
            images = bool(inner)
            position = 0
            for member in members(path, inner):
                name = member.name.rpartition("/")[2]
                if name.startswith("."):
                    continue
                split = "val" if images and is_held_out(wnid, name) else "train"
                images, position = True, member.after["position"]
                if split in splits:
                    after = {"class": number, "before": before, "inner": member.after, "position": before + position}
                    yield Entry(split, wnid, name, member.place, member.data, after)
            if not images:
                raise UserError(f"{path}: holds no images; fetch it again, or remove it")
            before += position

    def complete(self, counts: dict[str, int]) -> dict[str, Any]:
        held_out = sum(count for folder, count in counts.items() if folder.startswith("val/"))
        if not held_out:
            raise UserError(
                f"{self.path}: none of {sum(counts.values()):,} images was drawn for validation; that needs some hundred"
            )
        return {"held_out": held_out}


def is_held_out(wnid: str, name: str) -> bool:
    return int.from_bytes(hashlib.sha256(f"{wnid}/{name}".encode("utf-8", "surrogateescape")).digest()[:8]) % HELD_OUT == 0
