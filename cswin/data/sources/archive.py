"""The report's archive: one tar or tar.gz with train/ and val/ by class, at the top or below one folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cswin.data.sources.members import members
from cswin.data.sources.source import FLAT_VALIDATION, LAYOUT, SORT_VALIDATION, SPLITS, Entry, Source, identify
from cswin.data.sources.tar_reader import is_gzip
from cswin.errors import UserError

SUFFIXES = (".tar", ".tar.gz", ".tgz")
_NAMED_IGNORED = 20


class Archive(Source):
    """A tar or tar.gz.

    An interrupted extraction of a plain tar resumes at the next member; a tar.gz is decompressed again up to there.
    """

    kind = "archive"
    inputs = {"archive": "one tar or tar.gz with train/<class>/ and val/<class>/ (the report's imagenet.tar.gz)"}
    called = "an archive with train/<class>/ and val/<class>/"
    in_archive = re.compile(r"([^/]+/)?(train|val)/[^/]+/[^/]+")

    def __init__(self, archive: Path):
        self.path = archive
        self._ignored: tuple[int, list[str]] = (0, [])

    @property
    def title(self) -> str:
        return self.path.name

    def identity(self) -> dict[str, dict[str, Any]]:
        return {"archive": identify(self.path)}

    def entries(self, cursor: dict[str, Any] | None = None, splits: Sequence[str] = SPLITS) -> Iterator[Entry]:
        top, (ignored, names) = (cursor["top"], cursor["ignored"]) if cursor else (None, (0, []))
        is_gzip(self.path)  # refuses a zip and what is no archive
        names, found = list(names), bool(cursor and cursor["members"] > ignored)
        for member in members(self.path, cursor, lambda name: any(part in splits for part in name.split("/")[:2])):
            place = self._place(member.name, top)
            if place is None:
                ignored += 1
                names += [member.name] if len(names) < _NAMED_IGNORED else []
                continue
            found, top = True, place[-1]
            if place[0] in splits:
                yield Entry(*place[:3], member.place, member.data, {**member.after, "top": top, "ignored": [ignored, names]})
        self._ignored = ignored, names
        if not found:
            raise UserError(f"{self.path}: holds no images in train/<class>/ and val/<class>/; is it the right archive?")

    def complete(self, counts: dict[str, int]) -> dict[str, Any]:
        for split in SPLITS:
            if not any(folder.startswith(f"{split}/") for folder in counts):
                raise UserError(f"{self.path}: holds no {split}/; {LAYOUT}, alone or below one top folder")
        return {"ignored": {"count": self._ignored[0], "first": self._ignored[1]}}

    def _place(self, name: str, top: str | None) -> tuple[str, str, str, str] | None:
        """(split, class, file name, top folder) of a member; None for a file that does not belong to the dataset.

        Raises:
            UserError: for a file in train/ or val/ that is not in a class folder, or is below another top folder than `top` (None:
                none so far).
        """
        parts = name.split("/")
        depth = next((depth for depth in (0, 1) if len(parts) > depth and parts[depth] in SPLITS), None)
        if depth is None or any(part.startswith(".") for part in parts):
            return None
        here = parts[0] if depth else ""
        if top is not None and here != top:
            raise UserError(
                f"{self.path}: {name!r} is below {here!r} while others are below {top!r}; there may be one top folder"
            )
        if len(parts) != depth + 3:
            advice = SORT_VALIDATION if FLAT_VALIDATION.fullmatch(parts[-1]) else f"{LAYOUT}, alone or below one top folder"
            raise UserError(f"{self.path}: {name!r} is not in a class folder; {advice}")
        return parts[depth], parts[depth + 1], parts[-1], here
