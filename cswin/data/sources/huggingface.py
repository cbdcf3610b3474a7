"""ImageNet as on the Hugging Face Hub: parquet files with image bytes and label, or tar.gz files with the class in each file's name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cswin.data.sources.members import members
from cswin.data.sources.numbered import folder_names, official_name, place_image
from cswin.data.sources.sharded import Image, Sharded
from cswin.data.sources.tar_reader import damage
from cswin.errors import UserError

_ROWS = 64  # held in memory at once
_KINDS = ((b"\x89PNG", "png"), (b"RIFF", "webp"))


class HuggingFace(Sharded):
    """Where there are parquet files and others, the parquet files are read."""

    kind = "huggingface"
    inputs = {
        "path": "a folder or pattern of parquet files (columns image, label), or of train_images_*.tar.gz and val_images.tar.gz"
    }
    called = "the layout of the Hugging Face Hub"
    in_archive = re.compile(r"(.*/)?(n\d{8}_\d+|ILSVRC2012_val_\d{8})_n\d{8}\.JPEG")
    in_folder = re.compile(r"(.*/)?[^/]+\.parquet|(.*/)?(train|val)_images(_\d+)?\.tar\.gz")

    def __init__(self, path: Path):
        super().__init__(path, (".parquet", ".tar.gz"))
        parquet = [(split, file) for split, file in self.files if file.suffix == ".parquet"]
        self.files = parquet or self.files

    def images(self, file: Path, cursor: dict[str, Any] | None) -> Iterator[Image]:
        return (_parquet_images if file.suffix == ".parquet" else _tar_images)(file, cursor)


def _tar_images(path: Path, cursor: dict[str, Any] | None) -> Iterator[Image]:
    member = None
    for member in members(path, cursor):
        if member.name.rpartition("/")[2].startswith("."):
            continue
        stem, _, suffix = member.name.rpartition("/")[2].rpartition(".")
        name, wnid = official_name(stem) or (None, None)
        if wnid is None or suffix.lower() not in ("jpeg", "jpg"):
            raise UserError(
                f"{member.place}: its name does not end in its class, as in n01440764_10026_n01440764.JPEG; is it the right file?"
            )
        yield Image(wnid, name, member.place, member.data, member.after)
    if member is None and cursor is None:
        raise UserError(f"{path}: holds no images; fetch it again")


def _parquet_images(path: Path, cursor: dict[str, Any] | None) -> Iterator[Image]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            f"{path}: parquet files are read by pyarrow, which is not there ({error}): pip install -e '.[parquet]' in the repository"
        ) from error
    done = cursor["row"] if cursor else 0
    try:
        with parquet.ParquetFile(path) as file:
            names = _class_names(path, file.schema_arrow)
            size, rows, row = path.stat().st_size, file.metadata.num_rows, done
            groups, start = _groups_from(file.metadata, done)
            batches = file.iter_batches(_ROWS, row_groups=groups, columns=["image", "label"])
            for item in (item for batch in batches for item in batch.to_pylist()):
                start += 1
                if start > done:
                    row = start
                    yield Image(*_image(path, row - 1, item, names), {"row": row, "position": size * row // rows})
            if row != rows or not rows:
                raise UserError(damage(path, f"{row} of {rows} rows can be read"))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(damage(path, str(error).splitlines()[0])) from error


def _groups_from(metadata, row: int) -> tuple[list[int], int]:
    """The row groups from the one on that holds a row, and the number of rows before them."""
    start = 0
    for group in range(metadata.num_row_groups):
        count = metadata.row_group(group).num_rows
        if start + count > row:
            return list(range(group, metadata.num_row_groups)), start
        start += count
    return [], start


def _class_names(path: Path, schema) -> tuple[str, ...] | None:
    """Names of the classes by number, which the Hub's files keep beside the columns."""
    missing = [name for name in ("image", "label") if name not in schema.names]
    if missing:
        raise UserError(
            f"{path}: has no column {' and no '.join(missing)} (it has {', '.join(schema.names)}); rename the columns"
        )
    try:
        facts = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]
        return folder_names(tuple(map(str, facts)))
    except (KeyError, ValueError, TypeError):
        return None


def _image(path: Path, row: int, item: dict[str, Any], names: tuple[str, ...] | None) -> tuple[str, str, str, bytes]:
    """Class, file name, place and bytes of a row."""
    image, label, place = item["image"], item["label"], f"{path}: row {row}"
    data, source = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
    if not isinstance(data, bytes) or not isinstance(label, int):
        raise UserError(f"{place}: holds no image bytes and no number as label; use files in which images are embedded")
    class_name, name = place_image(Path(source or "").stem, label, names, place)
    if name is None:
        name = f"{path.stem}_{row:07d}.{next((suffix for magic, suffix in _KINDS if data.startswith(magic)), 'jpg')}"
    return class_name, name, place, data
