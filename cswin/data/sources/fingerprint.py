"""Detects changes in a user's own folder of images by names, sizes and dates; no image is read.

The fingerprint only decides whether the manifest is made again. The manifest's hash, which covers the bytes of the images, decides
whether anything is converted or trained again.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cswin.atomic import atomic_path

SPLITS = ("train", "val")
_THREADS = 16  # requests to a network file system mostly wait


def folder_fingerprint(images: Path) -> str:
    """SHA-256 over name, size and modification time of each file in train/<class>/ and val/<class>/; hidden files are left out.

    Nothing is opened. One `stat` per file: about 5 s for 1.3 million files on a local disk.
    """
    folders = [Path(entry.path) for split in SPLITS for entry in _entries(images / split)]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = sorted(
            zip((folder.relative_to(images).as_posix() for folder in folders), pool.map(_files, folders), strict=True)
        )
    return hashlib.sha256(repr(found).encode("utf-8", "surrogateescape")).hexdigest()


def save_fingerprint(fingerprint: str, path: Path) -> None:
    """Write down the fingerprint with which a manifest was made."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"fingerprint": fingerprint}) + "\n", encoding="utf-8")


def folder_changed(images: Path, noted: Path) -> bool:
    """Whether the folder's fingerprint differs from the one that `save_fingerprint` wrote. A missing folder does not count as
    changed: the files that were made from it are still valid.
    """
    if not images.is_dir():
        return False
    try:
        before = json.loads(noted.read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return True
    return folder_fingerprint(images) != before


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError:  # the folder is missing or unreadable: the manifest step reports it
        return []


def _files(folder: Path) -> str:
    lines = []
    for entry in _entries(folder):
        try:
            facts = entry.stat()
            lines.append(f"{entry.name!r} {facts.st_size} {facts.st_mtime_ns}")
        except OSError:  # a dangling link: the manifest step reports it
            lines.append(f"{entry.name!r} missing")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
