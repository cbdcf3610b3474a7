"""The official ILSVRC2012 files.

`ILSVRC2012_img_train.tar` is a tar of one tar per class, `ILSVRC2012_img_val.tar` is flat, and the labels of the latter are in
`ILSVRC2012_devkit_t12.tar.gz`: line k of the ground truth is the ILSVRC2012_ID of image k, and `meta.mat` gives the WNID of each
ID. The IDs are not the class indices of this project or of published weights: those are the positions of the WNIDs in
sorted order.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cswin.data.sources.checksum import Hashed
from cswin.data.sources.source import LISTED, SPLITS, Entry, Source, identify
from cswin.data.sources.tar_reader import Member, damage, files, is_gzip, open_archive, read_data
from cswin.distributed.cores import usable_cores
from cswin.errors import UserError

OFFICIAL = {  # name of a file -> its key in the configuration
    "ILSVRC2012_img_train.tar": "train_archive",
    "ILSVRC2012_img_val.tar": "val_archive",
    "ILSVRC2012_devkit_t12.tar.gz": "devkit",
}
PUBLISHED = {  # bytes and MD5 of the files; the size of the devkit is not checked
    "train": (147_897_477_120, "1d675b47d978889d74fa0da5fadfb00e"),
    "val": (6_744_924_160, "29b22e2961454d5413ddabcf34fc5622"),
    "devkit": (None, "fa75699e90414af021442c21a62c3abf"),
}
_META = "meta.mat"
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_CLASS_TAR = re.compile(r"(n\d{8})\.tar")
_VAL_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


@dataclass(frozen=True)
class Devkit:
    """The content of the devkit.

    Attributes:
        train_images: number of training images by WNID of the classes (the leaves of the hierarchy); None: unknown.
        val_wnids: WNID of each validation image, beginning with image 1.
    """

    train_images: dict[str, int | None]
    val_wnids: tuple[str, ...]


def read_devkit(path: Path) -> Devkit:
    """Read the devkit's archive.

    Raises:
        UserError: if one of the two files is missing or cannot be read, or the ground truth has IDs without a class.
    """
    found: dict[str, bytes] = {}
    with open_archive(path, 1) as stream:
        for member in files(path, stream):
            if member.parts[-1] in (_META, _GROUND_TRUTH):
                found[member.parts[-1]] = read_data(path, stream, member)
    missing = {_META, _GROUND_TRUTH} - set(found)
    if missing:
        raise UserError(f"{path}: holds no {' and no '.join(sorted(missing))}; is it ILSVRC2012_devkit_t12.tar.gz?")
    wnids, train_images = _read_synsets(path, found[_META])
    lines = found[_GROUND_TRUTH].decode("ascii", "replace").split()
    wrong = [f"line {number}: {text}" for number, text in enumerate(lines, 1) if not (text.isdigit() and int(text) in wnids)]
    if wrong:
        raise UserError(
            f"{path}: {_GROUND_TRUTH} has {len(wrong)} labels that are no ILSVRC2012_ID of a class in {_META} "
            f"(1 to {max(wnids)}): {', '.join(wrong[:LISTED])}"
        )
    return Devkit(train_images, tuple(wnids[int(text)] for text in lines))


def _read_synsets(path: Path, data: bytes) -> tuple[dict[int, str], dict[str, int | None]]:
    """WNID by ID, and number of training images by WNID, of the leaves of the hierarchy in meta.mat."""
    import numpy as np
    from scipy.io import loadmat

    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(data), squeeze_me=True)["synsets"])
        leaves = [synset for synset in synsets if int(synset["num_children"]) == 0]
        counted = "num_train_images" in (synsets.dtype.names or ())
        entries = [
            (int(s["ILSVRC2012_ID"]), str(s["WNID"]), int(s["num_train_images"]) if counted else None) for s in leaves
        ]  # fmt: skip
    except Exception as error:  # scipy's readers raise many kinds of exceptions on damaged files
        raise UserError(f"{path}: {_META} cannot be read as the devkit's table of synsets ({error!r})") from error
    for what, values in (("ILSVRC2012_ID", [e[0] for e in entries]), ("WNID", [e[1] for e in entries])):
        repeated = [str(value) for value, count in Counter(values).items() if count > 1]
        if repeated:
            raise UserError(f"{path}: {_META} has a {what} twice: {', '.join(repeated[:LISTED])}")
    if not entries:
        raise UserError(f"{path}: {_META} holds no classes")
    return {number: wnid for number, wnid, _ in entries}, {wnid: images for _, wnid, images in entries}


class Ilsvrc2012(Source):
    """The three official files. The inner tars are read in place, so nothing is written twice.

    An archive of the published size must have the published MD5, which is computed while it is read. Where one of the archives has
    that size, the devkit must have its MD5 as well.
    """

    kind = "ilsvrc2012"
    inputs = {key: f"the official {name}" for name, key in OFFICIAL.items()}
    called = "one of the official ILSVRC2012 files"
    in_archive = re.compile(r"n\d{8}\.tar|(.*/)?ILSVRC2012_val_\d{8}\.JPEG")
    in_folder = re.compile("|".join(map(re.escape, OFFICIAL)))
    title = "ILSVRC2012"

    def __init__(self, train: Path, val: Path, devkit: Path):
        self.train, self.val, self.devkit = train, val, devkit

    @classmethod
    def at(cls, path: Path) -> Ilsvrc2012:
        folder = path if path.is_dir() else path.parent
        return cls(*(folder / name for name in OFFICIAL))

    @cached_property
    def truth(self) -> Devkit:
        """The content of the devkit; read once."""
        if self._published():
            with self.devkit.open("rb") as file:
                _check_md5("devkit", self.devkit, hashlib.file_digest(file, "md5").hexdigest())
        return read_devkit(self.devkit)

    def identity(self) -> dict[str, dict[str, Any]]:
        return {"train": identify(self.train), "val": identify(self.val), "devkit": identify(self.devkit)}

    def entries(self, cursor: dict[str, Any] | None = None, splits: Sequence[str] = SPLITS) -> Iterator[Entry]:
        for path in (self.train, self.val):
            if is_gzip(path):
                raise UserError(f"{path}: is compressed, the official file is a plain tar; decompress it first")
        cursor = cursor or {"part": "train", "outer": 0, "inner": None}
        if cursor["part"] == "train" and "train" in splits:
            yield from self._train_images(cursor)
        if "val" in splits:
            yield from self._val_images(cursor["next"] if cursor["part"] == "val" else 0)

    def complete(self, counts: dict[str, int]) -> dict[str, Any]:
        _check_counts(self.train, self.val, self.truth, counts)
        return {"md5_as_published": self._published()}

    def _published(self) -> list[str]:
        """The archives of the published size; with one of them the devkit."""
        archives = {"train": self.train, "val": self.val}
        found = [key for key, path in archives.items() if path.stat().st_size == PUBLISHED[key][0]]
        return [*found, "devkit"] if found else []

    @contextlib.contextmanager
    def _checked(self, key: str, path: Path) -> Iterator[Any]:
        """An archive; at its end its MD5 is compared."""
        with open_archive(path, usable_cores()) as stream:
            hashed = Hashed(stream) if key in self._published() else None
            yield hashed or stream
            if hashed:
                _check_md5(key, path, hashed.hexdigest())

    def _train_images(self, cursor: dict[str, Any]) -> Iterator[Entry]:
        train, classes = self.train, self.truth.train_images
        header, resume = cursor["outer"], cursor["inner"]
        with self._checked("train", train) as stream:
            for class_tar in files(train, stream, header):
                match = _CLASS_TAR.fullmatch(class_tar.parts[-1])
                if match is None or match[1] not in classes:
                    raise UserError(
                        f"{train}: member {class_tar.name!r} is no class of the devkit; is it ILSVRC2012_img_train.tar?"
                    )
                for member in files(train, stream, resume or class_tar.start):
                    if member.next > class_tar.start + class_tar.size:
                        raise UserError(damage(train, f"{class_tar.name!r} has no end mark"))
                    if len(member.parts) != 1:
                        raise UserError(
                            f"{train}: {class_tar.name!r} holds {member.name!r} in a folder; is it the official file?"
                        )
                    after = {"part": "train", "outer": header, "inner": member.next, "position": member.next}
                    yield _entry("train", match[1], train, stream, member, after)
                header, resume = class_tar.next, None

    def _val_images(self, start: int) -> Iterator[Entry]:
        before = self.train.stat().st_size
        with self._checked("val", self.val) as stream:
            for member in files(self.val, stream, start):
                after = {"part": "val", "next": member.next, "position": before + member.next}
                yield _entry("val", _val_wnid(self.val, member, self.truth), self.val, stream, member, after)


def _check_md5(key: str, path: Path, found: str) -> None:
    if found != PUBLISHED[key][1]:
        raise UserError(f"{path}: its MD5 is {found}, that of the published file is {PUBLISHED[key][1]}; fetch it again")


def _entry(split: str, class_name: str, path: Path, stream, member: Member, cursor: dict[str, Any]) -> Entry:
    place = f"{path}: {member.name!r}"
    return Entry(split, class_name, member.parts[-1], place, read_data(path, stream, member), cursor)


def _val_wnid(val: Path, member: Member, truth: Devkit) -> str:
    match = _VAL_IMAGE.fullmatch(member.parts[-1])
    number = int(match[1]) if match else 0
    if not 1 <= number <= len(truth.val_wnids):
        raise UserError(
            f"{val}: member {member.name!r} is none of the {len(truth.val_wnids):,} validation images of the devkit; "
            "is it ILSVRC2012_img_val.tar?"
        )
    return truth.val_wnids[number - 1]


def _check_counts(train: Path, val: Path, truth: Devkit, counts: dict[str, int]) -> None:
    """Compare the extracted images with the devkit."""
    wrong = []
    for wnid, promised in sorted(truth.train_images.items()):
        there = counts.get(f"train/{wnid}", 0)
        if there == 0 or promised not in (None, there):
            wrong.append(f"{wnid} {there} of {promised if promised is not None else 'some'}")
    if wrong:
        raise UserError(
            f"{train}: {len(wrong)} classes have other numbers of images than the devkit says: {', '.join(wrong[:LISTED])}; "
            "fetch the archive again"
        )
    images = sum(count for folder, count in counts.items() if folder.startswith("val/"))
    if images != len(truth.val_wnids):
        raise UserError(f"{val}: holds {images:,} images, the devkit has labels for {len(truth.val_wnids):,}; fetch it again")
