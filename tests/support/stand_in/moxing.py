"""A stand-in for the platform's `moxing`: its documented calls, on folders.

`obs://bucket/key` is `$MOXING_BUCKETS/bucket/key`. As in object storage, an object appears only when it is complete, folders need not
be created, and calls can fail temporarily (the next `failures` calls do).
"""

import os
import shutil
import uuid
from pathlib import Path
from types import SimpleNamespace

failures = 0


def _path(url):
    global failures
    if failures:
        failures -= 1
        raise ConnectionError("503 service unavailable")
    url = str(url)
    for scheme in ("obs://", "s3://"):
        if url.startswith(scheme):
            return Path(os.environ["MOXING_BUCKETS"], url.removeprefix(scheme))
    return Path(url)


def _put(data, target):
    aside = Path(os.environ["MOXING_BUCKETS"], f"upload-{uuid.uuid4().hex}")
    shutil.copyfile(data, aside) if isinstance(data, Path) else aside.write_bytes(data)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(aside, target)


def exists(url):
    return _path(url).exists()


def is_directory(url):
    return _path(url).is_dir()


def list_directory(url, recursive=False):
    folder = _path(url)
    if not folder.is_dir():
        raise FileNotFoundError(url)
    found = folder.rglob("*") if recursive else folder.iterdir()
    return [p.relative_to(folder).as_posix() for p in found]


def get_size(url, recursive=False):
    path = _path(url)
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if recursive else 0
    return path.stat().st_size


def copy(src_url, dst_url):
    origin, target = _path(src_url), _path(dst_url)
    if origin.is_dir() or target.is_dir():
        raise IsADirectoryError("mox.file.copy copies files")
    _put(origin, target)


def copy_parallel(src_url, dst_url):
    origin, target = _path(src_url), _path(dst_url)
    for file in [origin] if origin.is_file() else origin.rglob("*"):
        if file.is_file():
            _put(file, target / file.relative_to(origin) if origin.is_dir() else target)


def remove(url, recursive=False):
    path = _path(url)
    if path.is_dir():
        if not recursive:
            raise IsADirectoryError(url)
        shutil.rmtree(path)
    else:
        path.unlink()


def read(url, binary=False):
    return _path(url).read_bytes() if binary else _path(url).read_text()


def write(url, data):
    _put(data.encode() if isinstance(data, str) else data, _path(url))


file = SimpleNamespace(
    exists=exists, is_directory=is_directory, list_directory=list_directory, get_size=get_size, copy=copy,
    copy_parallel=copy_parallel, remove=remove, read=read, write=write,
)  # fmt: skip
