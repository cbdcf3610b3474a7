"""The report's archive: one tar or tar.gz with train/ and val/ by class, at the top or below one folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cswin.data.sources.source import FLAT_VALIDATION, LAYOUT, SORT_VALIDATION, SPLITS, Entry, Source, identify
from cswin.data.sources.tar_reader import Member, files, is_gzip, open_archive, read_data
from cswin.distributed.cores import usable_cores
from cswin.errors import UserError

SUFFIXES = (".tar", ".tar.gz", ".tgz")
_NAMED_IGNORED = 20
# Signs of other layouts of ImageNet, and advice. They appear in the first members, before the whole archive is read.
_OTHER_LAYOUTS = (
    (
        re.compile(r"(.*/)?(Data|Annotations|ImageSets)/CLS-LOC/.*"),
        f"this is Kaggle's layout: {SORT_VALIDATION}. Extract it, and set data.source: folder and data.folder: …/Data/CLS-LOC",
    ),
    (
        re.compile(rf"n\d{{8}}\.tar|(.*/)?{FLAT_VALIDATION.pattern}"),
        "this is one of the official ILSVRC2012 files; set data.source: ilsvrc2012 with train_archive, val_archive and devkit",
    ),
)


class Archive(Source):
    """A tar or tar.gz.

    An interrupted extraction of a plain tar resumes at the next member; a tar.gz is decompressed again up to there.
    """

    kind = "archive"
    inputs = {"archive": "one tar or tar.gz with train/<class>/ and val/<class>/ (the report's imagenet.tar.gz)"}

    def __init__(self, archive: Path):
        self.path = archive
        self._ignored: tuple[int, list[str]] = (0, [])

    @property
    def title(self) -> str:
        return self.path.name

    def identity(self) -> dict[str, dict[str, Any]]:
        return {"archive": identify(self.path)}

    def entries(self, cursor: dict[str, Any] | None = None, splits: Sequence[str] = SPLITS) -> Iterator[Entry]:
        cursor = cursor or {"position": 0, "members": 0, "top": None, "ignored": [0, []]}
        packed, count, top = is_gzip(self.path), cursor["members"], cursor["top"]
        ignored, names = cursor["ignored"][0], list(cursor["ignored"][1])
        skip, found = count if packed else 0, count > ignored
        with open_archive(self.path, usable_cores()) as stream:
            for number, member in enumerate(files(self.path, stream, 0 if packed else cursor["position"])):
                if number < skip:
                    continue
                count += 1
                place = self._place(member, top)
                if place is None:
                    ignored += 1
                    names += [member.name] if len(names) < _NAMED_IGNORED else []
                    continue
                found, top = True, place[-1]
                after = {"position": member.next, "members": count, "top": top, "ignored": [ignored, names]}
                if place[0] in splits:
                    data = read_data(self.path, stream, member)
                    yield Entry(*place[:3], f"{self.path}: {member.name!r}", data, after)
        self._ignored = ignored, names
        if not found:
            raise UserError(f"{self.path}: holds no images in train/<class>/ and val/<class>/; is it the right archive?")

    def complete(self, counts: dict[str, int]) -> dict[str, Any]:
        for split in SPLITS:
            if not any(folder.startswith(f"{split}/") for folder in counts):
                raise UserError(f"{self.path}: holds no {split}/; {LAYOUT}, alone or below one top folder")
        return {"ignored": {"count": self._ignored[0], "first": self._ignored[1]}}

    def _place(self, member: Member, top: str | None) -> tuple[str, str, str, str] | None:
        """(split, class, file name, top folder) of a member; None for a file that does not belong to the dataset.

        Raises:
            UserError: for another known layout; for a file in train/ or val/ that is not in a class folder, or is below another top
                folder than `top` (None: none so far).
        """
        parts = member.parts
        depth = next((depth for depth in (0, 1) if len(parts) > depth and parts[depth] in SPLITS), None)
        if depth is None:
            for pattern, advice in _OTHER_LAYOUTS:
                if pattern.fullmatch("/".join(parts)):
                    raise UserError(f"{self.path}: {member.name!r}: {advice}")
        if depth is None or any(part.startswith(".") for part in parts):
            return None
        here = parts[0] if depth else ""
        if top is not None and here != top:
            raise UserError(
                f"{self.path}: {member.name!r} is below {here!r} while others are below {top!r}; there may be one top folder"
            )
        if len(parts) != depth + 3:
            advice = SORT_VALIDATION if FLAT_VALIDATION.fullmatch(parts[-1]) else f"{LAYOUT}, alone or below one top folder"
            raise UserError(f"{self.path}: {member.name!r} is not in a class folder; {advice}")
        return parts[depth], parts[depth + 1], parts[-1], here
