"""Brings in what a job starts from: the images' archives and a pretrained checkpoint."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cswin.atomic import atomic_path
from cswin.checkpoint import SUFFIXES
from cswin.data.sources.archive import SUFFIXES as ARCHIVES
from cswin.data.sources.ilsvrc import OFFICIAL
from cswin.data.sources.source import SPLITS
from cswin.data.sources.tree_writer import check_space
from cswin.errors import UserError
from cswin.openi.storage import Folder, Storage, join, storage_for
from cswin.progress import size_text

INPUTS = "inputs"  # below the work folder


@dataclass(frozen=True)
class Item:
    """A file or folder that lies ready for the job."""

    storage: Storage
    url: str
    name: str


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
        return {"source": "ilsvrc2012", **{key: _bring(item, work, say) for key, item in official.items()}}
    archives = [item for item in items if item.name.endswith(ARCHIVES)]
    folders = [Item(storage_for(url), url, name) for url, name in places if set(SPLITS) <= set(storage_for(url).names(url))]
    folders += [item for item in items if item.storage.is_folder(item.url) and set(SPLITS) <= set(item.storage.names(item.url))]
    if len(archives) == 1:
        return {"source": "archive", "archive": _bring(archives[0], work, say)}
    if not archives and len(folders) == 1:
        return {"source": "folder", "folder": _bring(folders[0], work, say)}
    raise UserError(
        f"data_url: one tar or tar.gz with train/ and val/, the three ILSVRC2012 files, or one folder with train/ and val/ is "
        f"needed; found {_names(archives or folders or items)} at {', '.join(url for url, _ in places)}"
    )


def bring_checkpoint(name: str | None, places: Sequence[tuple[str, str]], work: Path, say: Callable[[str], None]) -> str | None:
    """The pretrained checkpoint, relative to the work folder: the same for every start, since it belongs to a stage's identity.

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
        return _copied(Item(storage_for(name), name, name.rpartition("/")[2]), work, say)
    items = _items(places)
    found: list[tuple[Item, str | None]] = [(item, None) for item in items if item.name.endswith(SUFFIXES)]
    for item in items:
        if item.name.endswith(".zip"):
            with zipfile.ZipFile(_bring(item, work, say)) as packed:
                found += [(item, member) for member in packed.namelist() if member.endswith(SUFFIXES)]
    names = [(member or item.name).rpartition("/")[2] for item, member in found]
    chosen = [i for i, file in enumerate(names) if name in (None, file, file.rpartition(".")[0])]
    chosen = chosen or [i for i, file in enumerate(names) if file.startswith(name)]
    if len(chosen) != 1:
        raise UserError(
            f"pretrained: {name or 'the model'} must be one checkpoint ({', '.join(SUFFIXES)}); found {', '.join(names) or 'none'}; "
            "give its name, path or URL (other files: cswin convert-weights)"
        )
    item, member = found[chosen[0]]
    if member is None:
        return _copied(item, work, say)
    target = Path(INPUTS, names[chosen[0]])
    with zipfile.ZipFile(_bring(item, work, say)) as packed, atomic_path(work / target) as temporary:
        temporary.write_bytes(packed.read(member))
    return target.as_posix()


def _items(places: Sequence[tuple[str, str]]) -> list[Item]:
    """The files and folders at the places: themselves where they are files, else what lies directly in them."""
    items = []
    for url, name in places:
        storage = storage_for(url)
        if not storage.exists(url):
            raise UserError(
                f"{url}: there is no such file or folder; check data_url, and that the dataset was chosen for the job"
            )
        if storage.is_folder(url):
            items += [Item(storage, join(url, entry), entry) for entry in storage.names(url)]
        else:
            items.append(Item(storage, url, name))
    return items


def _bring(item: Item, work: Path, say: Callable[[str], None]) -> str:
    """Absolute path of an item, copied from object storage if it is not there yet."""
    if isinstance(item.storage, Folder):
        return str(Path(item.url).resolve())
    local = work / INPUTS / item.name
    if item.storage.is_folder(item.url):
        item.storage.get_folder(item.url, local)
    else:
        size = item.storage.size(item.url)
        if not (local.is_file() and local.stat().st_size == size):
            check_space(local, size, item.name)
            say(f"bringing in {item.url}, {size_text(size)}")
            item.storage.get(item.url, local)
    return str(local)


def _copied(item: Item, work: Path, say: Callable[[str], None]) -> str:
    local = work / INPUTS / item.name
    if not (local.is_file() and local.stat().st_size == item.storage.size(item.url)):
        say(f"bringing in {item.url}")
        local.parent.mkdir(parents=True, exist_ok=True)
        item.storage.get(item.url, local)
    return f"{INPUTS}/{item.name}"


def _names(items: Sequence[Item]) -> str:
    return ", ".join(item.name for item in items[:10]) or "nothing"
