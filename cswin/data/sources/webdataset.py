"""WebDataset: tar files in which neighbouring members with the same name before the first dot are one sample: image and class."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cswin.data.sources.members import Member, members
from cswin.data.sources.numbered import place_image
from cswin.data.sources.sharded import Image, Sharded
from cswin.errors import UserError

_IMAGES = ("jpg", "jpeg", "png", "webp")
_LABELS = ("cls", "json")
_WNID = re.compile(r"n\d{8}")


class WebDataset(Sharded):
    """The class of a sample is a number or a WNID."""

    kind = "webdataset"
    inputs = {"path": "a folder or pattern of tar shards (/data/*.tar) with .jpg, .jpeg or .png and .cls or .json"}
    called = "the layout of WebDataset shards"
    in_archive = re.compile(r"(.*/)?[^/.]+\.cls|(.*/)?(n\d{8}_|ILSVRC2012_val_)?\d+\.json")
    in_folder = re.compile(r"(?!.*(train|val)_images).*(train|val).*\d\.tar(\.gz)?")  # not the Hub's archives

    def __init__(self, path: Path):
        super().__init__(path, (".tar", ".tar.gz", ".tgz"))

    def images(self, file: Path, cursor: dict[str, Any] | None) -> Iterator[Image]:
        sample = None
        for sample in _samples(file, cursor):
            yield Image(*_image(file, sample), sample[-1][0].after)
        if sample is None and cursor is None:
            raise UserError(f"{file}: holds no samples; remove the shard, or fetch it again")


_Part = tuple[Member, str, str, bytes]  # member, key, suffix, bytes


def _samples(shard: Path, cursor: dict[str, Any] | None) -> Iterator[list[_Part]]:
    parts = ((member, *_key(member.name), member.data) for member in members(shard, cursor))
    for _, sample in itertools.groupby((part for part in parts if part[2]), key=lambda part: part[1]):
        yield list(sample)


def _key(name: str) -> tuple[str, str]:
    """Name of the sample, and suffix; hidden files have none."""
    folder, _, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return f"{folder}/{stem}", suffix.lower() if stem else ""


def _image(shard: Path, sample: list[_Part]) -> tuple[str, str, str, bytes]:
    """Class, file name, place and bytes of a sample's image."""
    found = {suffix: (member, data) for member, _, suffix, data in sample}
    place = sample[0][0].place
    suffix = next((suffix for suffix in _IMAGES if suffix in found), None)
    kind = next((suffix for suffix in _LABELS if suffix in found), None)
    if suffix is None or kind is None:
        what = f"image ({', '.join(_IMAGES)})" if suffix is None else f"class ({', '.join(_LABELS)})"
        raise UserError(
            f"{place}: its sample has no {what}, only {', '.join(sorted(found))}; is it a shard of images and classes?"
        )
    image, data = found[suffix]
    stem = sample[0][1].rpartition("/")[2]
    class_name, name = place_image(stem, _label(*found[kind], kind), None, found[kind][0].place)
    return class_name, name or f"{shard.name.partition('.')[0]}_{stem}.{suffix}", image.place, data


def _label(member: Member, data: bytes, kind: str) -> int | str:
    """The class: a number or a WNID; in JSON under "label" or "cls"."""
    try:
        value = json.loads(data) if kind == "json" else data.decode().strip()
        if isinstance(value, dict):
            value = next(value[key] for key in ("label", "cls") if key in value)
        return value if _WNID.fullmatch(str(value)) else int(value)
    except (ValueError, TypeError, StopIteration) as error:
        raise UserError(f"{member.place}: names no class: {data[:40]!r}; a number or a WNID is needed") from error
