"""Extraction of the official ILSVRC2012 files to train/<WNID>/ and val/<WNID>/.

`ILSVRC2012_img_train.tar` is a tar of one tar per class, `ILSVRC2012_img_val.tar` is flat, and the labels of the latter are in
`ILSVRC2012_devkit_t12.tar.gz`: line k of the ground truth is the ILSVRC2012_ID of image k, and `meta.mat` gives the WNID of each
ID. The IDs are not the class indices of this project, nor of any published weights: those are the positions of the WNIDs in
sorted order.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cswin.cores import usable_cores
from cswin.data.sources.archive import identify, write_receipt
from cswin.data.sources.tar_reader import Member, damage, files, is_gzip, open_archive, read_data
from cswin.data.sources.tree_writer import JOURNAL_SECONDS, TreeWriter, check_space, existing_tree, open_tree
from cswin.errors import UserError
from cswin.progress import Console

_META = "meta.mat"
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_CLASS_TAR = re.compile(r"(n\d{8})\.tar")
_VAL_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_LISTED = 10


@dataclass(frozen=True)
class Devkit:
    """What the devkit says.

    Attributes:
        train_images: number of training images by WNID of the classes (the leaves of the hierarchy); None: not given.
        val_wnids: WNID of each validation image, the first of image 1.
    """

    train_images: dict[str, int | None]
    val_wnids: tuple[str, ...]


def read_devkit(path: Path) -> Devkit:
    """Read the devkit's archive.

    Raises:
        UserError: if it lacks one of the two files, they cannot be read, or the ground truth has IDs that are no class.
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
            f"(1 to {max(wnids)}): {', '.join(wrong[:_LISTED])}"
        )
    return Devkit(train_images, tuple(wnids[int(text)] for text in lines))


def _read_synsets(path: Path, data: bytes) -> tuple[dict[int, str], dict[str, int | None]]:
    """WNID by ID, and number of training images by WNID, of the leaves of the hierarchy in meta.mat."""
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
            raise UserError(f"{path}: {_META} has a {what} twice: {', '.join(repeated[:_LISTED])}")
    if not entries:
        raise UserError(f"{path}: {_META} holds no classes")
    return {number: wnid for number, wnid, _ in entries}, {wnid: images for _, wnid, images in entries}


def extract_ilsvrc(
    train: Path,
    val: Path,
    devkit: Path,
    output: Path,
    receipt: Path,
    console: Console,
    journal_seconds: float = JOURNAL_SECONDS,
) -> dict[str, Any]:
    """Extract the official files to `output`, then write `receipt`.

    The inner tars are read in place, so nothing is written twice; an interrupted extraction goes on at the image where it stood.

    Args:
        train: ILSVRC2012_img_train.tar.
        val: ILSVRC2012_img_val.tar.
        devkit: ILSVRC2012_devkit_t12.tar.gz.
        output: folder that gets train/ and val/.
        receipt: JSON file, written last.
        console: for progress.
        journal_seconds: how often the place is written down.

    Returns:
        The receipt's content.

    Raises:
        UserError: damaged archives, members that do not belong there, another number of images than the devkit says, disk full.
    """
    source = {"train": identify(train), "val": identify(val), "devkit": identify(devkit)}
    marker = existing_tree(output, source)
    if marker is None:
        for path in (train, val):
            if is_gzip(path):
                raise UserError(f"{path}: is compressed, the official file is a plain tar; decompress it first")
        truth = read_devkit(devkit)
        with open_tree(output, source, journal_seconds) as tree:
            _extract(train, val, truth, tree, console)
            marker = tree.complete({}, lambda counts: _check_counts(train, val, truth, counts))
    else:
        console.say(f"extract: {output} is there already and whole")
    write_receipt(receipt, marker)
    return marker


def _extract(train: Path, val: Path, truth: Devkit, tree: TreeWriter, console: Console) -> None:
    cursor = tree.cursor or {"part": "train", "outer": 0, "inner": None}
    train_size, val_size = train.stat().st_size, val.stat().st_size
    done = (cursor["inner"] or cursor["outer"]) if cursor["part"] == "train" else train_size + cursor["next"]
    check_space(tree.output, train_size + val_size - done, "extracting ILSVRC2012")
    if tree.cursor is not None:
        console.say(f"extract: going on after {tree.written:,} files")
    with console.progress("extract ILSVRC2012", train_size + val_size, "B", done) as progress:
        if cursor["part"] == "train":
            with open_archive(train, usable_cores()) as stream:
                for wnid, outer, member in _train_images(train, stream, truth, cursor):
                    tree.add(f"train/{wnid}", member.parts[-1], read_data(train, stream, member))
                    tree.reached({"part": "train", "outer": outer, "inner": member.next})
                    progress.update(member.next - progress.done, files=f"{tree.written:,}")
            progress.update(train_size - progress.done)
        start = cursor["next"] if cursor["part"] == "val" else 0
        with open_archive(val, usable_cores()) as stream:
            for member in files(val, stream, start):
                tree.add(f"val/{_val_wnid(val, member, truth)}", member.parts[-1], read_data(val, stream, member))
                tree.reached({"part": "val", "next": member.next})
                progress.update(train_size + member.next - progress.done, files=f"{tree.written:,}")
        progress.update(train_size + val_size - progress.done)


def _train_images(train: Path, stream, truth: Devkit, cursor: dict[str, Any]) -> Iterator[tuple[str, int, Member]]:
    """(WNID, where the class's header is, image), from the cursor on."""
    header, resume = cursor["outer"], cursor["inner"]
    for class_tar in files(train, stream, header):
        match = _CLASS_TAR.fullmatch(class_tar.parts[-1])
        if match is None or match[1] not in truth.train_images:
            raise UserError(f"{train}: member {class_tar.name!r} is no class of the devkit; is it ILSVRC2012_img_train.tar?")
        for member in files(train, stream, resume or class_tar.start):
            if member.next > class_tar.start + class_tar.size:
                raise UserError(damage(train, f"{class_tar.name!r} has no end mark"))
            if len(member.parts) != 1:
                raise UserError(f"{train}: {class_tar.name!r} holds {member.name!r} in a folder; is it the official file?")
            yield match[1], header, member
        header, resume = class_tar.next, None


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
    """Compare what was extracted with what the devkit promises."""
    wrong = []
    for wnid, promised in sorted(truth.train_images.items()):
        there = counts.get(f"train/{wnid}", 0)
        if there == 0 or promised not in (None, there):
            wrong.append(f"{wnid} {there} of {promised if promised is not None else 'some'}")
    if wrong:
        raise UserError(
            f"{train}: {len(wrong)} classes have other numbers of images than the devkit says: {', '.join(wrong[:_LISTED])}; "
            "fetch the archive again"
        )
    images = sum(count for folder, count in counts.items() if folder.startswith("val/"))
    if images != len(truth.val_wnids):
        raise UserError(f"{val}: holds {images:,} images, the devkit has labels for {len(truth.val_wnids):,}; fetch it again")
