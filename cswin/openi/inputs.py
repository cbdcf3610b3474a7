"""Copies the inputs of a job: archives of images and a pretrained checkpoint."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cswin.atomic import atomic_path
from cswin.data.disk import check_space
from cswin.data.sources.archive import SUFFIXES as ARCHIVES
from cswin.data.sources.ilsvrc import OFFICIAL
from cswin.data.sources.source import SPLITS
from cswin.errors import UserError
from cswin.openi.storage import join, storage_for
from cswin.progress import size_text
from cswin.tensor_file import SUFFIXES

INPUTS = "inputs"  # folder in the work folder


Place = tuple[str, str]  # URL and name of an input file or folder
Say = Callable[[str], None]


def bring_data(places: Sequence[Place], work: Path, say: Say) -> dict[str, Any]:
    """The keys `source`, `archive`, … of the configuration's data section for the files at the places.

    Files in object storage are copied to the work folder, once; local files and folders are used in place.

    Args:
        places: (URL, name) of files, or of folders that contain them.
        work: the job's folder.
        say: receives messages.

    Raises:
        UserError: if there is no dataset, or more than one; it lists what was found.
    """
    items = _items(places)
    official = {OFFICIAL[name]: (url, name) for url, name in items if name in OFFICIAL}
    if official:
        if missing := [name for name, key in OFFICIAL.items() if key not in official]:
            raise UserError(
                f"data_url: {', '.join(missing)} is missing beside {', '.join(name for _, name in official.values())}"
            )
        return {"source": "ilsvrc2012", **{key: _found(place, work, say) for key, place in official.items()}}
    archives = [place for place in items if place[1].endswith(ARCHIVES)]
    folders = [place for place in (*places, *items) if set(storage_for(place[0]).names(place[0])) >= set(SPLITS)]
    if len(archives) == 1:
        return {"source": "archive", "archive": _found(archives[0], work, say)}
    if not archives and len(folders) == 1:
        return {"source": "folder", "folder": _found(folders[0], work, say)}
    found = ", ".join(name for _, name in (archives or folders or items)[:10]) or "nothing"
    raise UserError(
        f"data_url: must be one tar or tar.gz with train/ and val/, the three ILSVRC2012 files, or one folder with train/ and val/; "
        f"found {found} at {', '.join(url for url, _ in places)}"
    )


def bring_checkpoint(name: str | None, places: Sequence[Place], work: Path, say: Say) -> str | None:
    """Path of the pretrained checkpoint, relative to the work folder; None if there is none.

    Args:
        name: a path or URL of a checkpoint, or the name (or its beginning) of one at the places, also inside a zip file; None: the
            only one at the places, if any.
        places: (URL, name) of files, or of folders that contain them.

    Raises:
        UserError: if there is none of that name, or more than one.
    """
    if name is None and not places:
        return None
    if name and name.endswith(SUFFIXES) and storage_for(name).exists(name):
        return f"{INPUTS}/{_bring((name, name.rpartition('/')[2]), work, say).name}"
    found: list[tuple[str, Place, str | None]] = []  # name of the checkpoint, file, member of a zip file
    for place in _items(places):
        if place[1].endswith(SUFFIXES):
            found.append((place[1], place, None))
        elif place[1].endswith(".zip"):
            with zipfile.ZipFile(_found(place, work, say)) as packed:
                found += [(m.rpartition("/")[2], place, m) for m in packed.namelist() if m.endswith(SUFFIXES)]
    chosen = [one for one in found if name in (None, one[0], one[0].rpartition(".")[0])]
    chosen = chosen or [one for one in found if one[0].startswith(name)]
    if len(chosen) != 1:
        raise UserError(
            f"pretrained: {name or 'the model'} must be one checkpoint ({', '.join(SUFFIXES)}); found "
            f"{', '.join(one[0] for one in found) or 'none'}; give its name, path or URL (other files: cswin convert-weights)"
        )
    [(file, place, member)] = chosen
    if member is None:
        _bring(place, work, say)
    else:
        with zipfile.ZipFile(_found(place, work, say)) as packed, atomic_path(work / INPUTS / file) as temporary:
            temporary.write_bytes(packed.read(member))
    return f"{INPUTS}/{file}"


def _bring(place: Place, work: Path, say: Say) -> Path:
    """Copy a file or folder to the work folder, unless an existing file has the same size. Returns the path of the copy."""
    (url, name), storage = place, storage_for(place[0])
    local = work / INPUTS / name
    if storage.is_folder(url):
        storage.get_folder(url, local)
    elif not local.is_file() or local.stat().st_size != storage.size(url):
        check_space(local, size := storage.size(url), name)
        say(f"copying {url}, {size_text(size)}")
        storage.get(url, local)
    return local


def _found(place: Place, work: Path, say: Say) -> str:
    """Absolute path of a local file or folder, or of the copy of a remote one."""
    return str(Path(place[0]).resolve() if storage_for(place[0]).is_local else _bring(place, work, say))


def _items(places: Sequence[Place]) -> list[Place]:
    """The places that are files, and the direct content of those that are folders."""
    items: list[Place] = []
    for url, name in places:
        storage = storage_for(url)
        if not storage.exists(url):
            raise UserError(f"{url}: there is no such file or folder; check data_url, and that the job has this dataset")
        items += [(join(url, entry), entry) for entry in storage.names(url)] if storage.is_folder(url) else [(url, name)]
    return items
