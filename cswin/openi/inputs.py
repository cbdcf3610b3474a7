"""Brings in what a job starts from: the images' archives and a pretrained checkpoint."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cswin.atomic import atomic_path
from cswin.checkpoint import SUFFIXES
from cswin.data.sources.archive import SUFFIXES as ARCHIVES
from cswin.data.sources.ilsvrc import OFFICIAL
from cswin.data.sources.source import SPLITS
from cswin.data.sources.tree_writer import check_space
from cswin.errors import UserError
from cswin.openi.storage import join, storage_for
from cswin.progress import size_text

INPUTS = "inputs"  # below the work folder


class Item(NamedTuple):
    """A file or folder that lies ready for the job."""

    url: str
    name: str

    @property
    def has_splits(self) -> bool:
        """Whether it is a folder with train/ and val/."""
        return set(storage_for(self.url).names(self.url)) >= set(SPLITS)

    def bring(self, work: Path, say: Callable[[str], None]) -> Path:
        """Its copy below the work folder; a file is not copied again."""
        storage, local = storage_for(self.url), work / INPUTS / self.name
        if storage.is_folder(self.url):
            storage.get_folder(self.url, local)
        elif not local.is_file() or local.stat().st_size != storage.size(self.url):
            check_space(local, storage.size(self.url), self.name)
            say(f"bringing in {self.url}, {size_text(storage.size(self.url))}")
            storage.get(self.url, local)
        return local

    def found(self, work: Path, say: Callable[[str], None]) -> str:
        """Absolute path: where it lies on this machine, else of a copy."""
        return str(Path(self.url).resolve() if storage_for(self.url).is_local else self.bring(work, say))


def bring_data(places: Sequence[tuple[str, str]], work: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The keys `source`, `archive`, … of the configuration's data section for what lies at the places.

    Object storage is copied to the work folder, once; plain folders and files are used where they are.

    Args:
        places: (URL, name) of files, or of folders that hold them.
        work: the job's folder.
        say: receives messages.

    Raises:
        UserError: if there is no set of images, or more than one, with what was found.
    """
    items = _items(places)
    official = {OFFICIAL[item.name]: item for item in items if item.name in OFFICIAL}
    if official:
        if missing := [name for name, key in OFFICIAL.items() if key not in official]:
            raise UserError(f"data_url: {', '.join(missing)} is missing beside {', '.join(i.name for i in official.values())}")
        return {"source": "ilsvrc2012", **{key: item.found(work, say) for key, item in official.items()}}
    archives = [item for item in items if item.name.endswith(ARCHIVES)]
    folders = [item for item in (*(Item(*place) for place in places), *items) if item.has_splits]
    if len(archives) == 1:
        return {"source": "archive", "archive": archives[0].found(work, say)}
    if not archives and len(folders) == 1:
        return {"source": "folder", "folder": folders[0].found(work, say)}
    found = ", ".join(item.name for item in (archives or folders or items)[:10]) or "nothing"
    raise UserError(
        f"data_url: one tar or tar.gz with train/ and val/, the three ILSVRC2012 files, or one folder with train/ and val/ is "
        f"needed; found {found} at {', '.join(url for url, _ in places)}"
    )


def bring_checkpoint(name: str | None, places: Sequence[tuple[str, str]], work: Path, say: Callable[[str], None]) -> str | None:
    """The pretrained checkpoint, relative to the work folder.

    Args:
        name: a path or URL of a checkpoint; or the (beginning of the) name of one at the places, in a zip file as well; None:
            the only one at the places, or none.
        places: (URL, name) of files, or of folders that hold them.

    Raises:
        UserError: if there is none of that name, or more than one.
    """
    if name is None and not places:
        return None
    if name and name.endswith(SUFFIXES) and storage_for(name).exists(name):
        return f"{INPUTS}/{Item(name, name.rpartition('/')[2]).bring(work, say).name}"
    found: list[tuple[str, Item, str | None]] = []  # name of the checkpoint, file, member of a zip file
    for item in _items(places):
        if item.name.endswith(SUFFIXES):
            found.append((item.name, item, None))
        elif item.name.endswith(".zip"):
            with zipfile.ZipFile(item.found(work, say)) as packed:
                found += [(m.rpartition("/")[2], item, m) for m in packed.namelist() if m.endswith(SUFFIXES)]
    chosen = [one for one in found if name in (None, one[0], one[0].rpartition(".")[0])]
    chosen = chosen or [one for one in found if one[0].startswith(name)]
    if len(chosen) != 1:
        raise UserError(
            f"pretrained: {name or 'the model'} must be one checkpoint ({', '.join(SUFFIXES)}); found "
            f"{', '.join(one[0] for one in found) or 'none'}; give its name, path or URL (other files: cswin convert-weights)"
        )
    [(file, item, member)] = chosen
    if member is None:
        item.bring(work, say)
    else:
        with zipfile.ZipFile(item.found(work, say)) as packed, atomic_path(work / INPUTS / file) as temporary:
            temporary.write_bytes(packed.read(member))
    return f"{INPUTS}/{file}"


def _items(places: Sequence[tuple[str, str]]) -> list[Item]:
    """The files and folders at the places: themselves where they are files, else what lies directly in them."""
    items = []
    for url, name in places:
        storage = storage_for(url)
        if not storage.exists(url):
            raise UserError(f"{url}: there is no such file or folder; check data_url, and that the job has this dataset")
        inside = [Item(join(url, entry), entry) for entry in storage.names(url)]
        items += inside if storage.is_folder(url) else [Item(url, name)]
    return items
