"""Reads PyTorch's zip format (torch.save since PyTorch 1.6: one pickle, and one uncompressed record per storage) and the older one.

There is no writer: PyTorch reads .safetensors (`safetensors.torch.load_file`).
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from cswin.convert.pickle_reader import RefusedName, StorageReference, TensorReference, read_pickle
from cswin.errors import UserError

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)  # what the older format begins with
PROTOCOL = 1001  # its version
COUNT = np.dtype("i8")


class TorchFile:
    """An open file.

    Attributes:
        content: the saved object, with a `TensorReference` instead of each tensor.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self.path, self._archive = path, archive
        pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"{path}: is a zip file, but not one of torch.save; check that it is the right file")
        self._root = pickles[0].removesuffix("data.pkl")
        byteorder = f"{self._root}byteorder"
        big = byteorder in archive.namelist() and self._read(byteorder).strip() == b"big"
        self._order = ">" if big else "<"
        self.content, _ = self._unpickle(io.BytesIO(self._read(pickles[0])))

    def _unpickle(self, file: IO[bytes]) -> tuple[Any, dict[str, StorageReference]]:
        try:
            return read_pickle(file)
        except RefusedName as error:
            raise UserError(f"{self.path}: asks for {error}, which is neither a tensor nor a plain container: refused, and nothing "
                            "of the file was executed; save the state dictionary alone in PyTorch, "
                            'torch.save({"state_dict_ema": …}, file)') from error  # fmt: skip
        except ValueError as error:
            raise UserError(f"{self.path}: is damaged ({error}); take another copy") from error

    def _numbers(self, storage: StorageReference) -> bytes:
        return self._read(f"{self._root}data/{storage.key}")

    def _read(self, name: str) -> bytes:
        """A record; zipfile compares its CRC-32."""
        info = self._archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:  # it could decompress to any size
            raise UserError(f"{self.path}: {name} is compressed, torch.save does not do that; save it again in PyTorch")
        try:
            return self._archive.read(info)
        except (RuntimeError, EOFError) as error:  # encrypted or truncated
            raise zipfile.BadZipFile(str(error)) from error

    def array(self, reference: TensorReference) -> np.ndarray:
        """The tensor in its own type (bfloat16 as float32), contiguous.

        Raises:
            UserError: if the description does not fit the file.
        """
        try:
            view = self._view(reference)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise UserError(f"{self.path}: is damaged ({error}); take another copy") from error
        if reference.storage.dtype == "bfloat16":
            return (view.astype("u4") << 16).view("f4")
        return np.ascontiguousarray(view, view.dtype.newbyteorder("="))

    def _view(self, reference: TensorReference) -> np.ndarray:
        storage, shape, strides = reference.storage, reference.shape, reference.strides
        dtype = np.dtype("u2" if storage.dtype == "bfloat16" else storage.dtype).newbyteorder(self._order)
        data = self._numbers(storage)
        count = math.prod(shape)
        # Strides of 0 could describe an array of any size; no state dictionary has them.
        if len(shape) != len(strides) or min((reference.offset, *shape, *strides)) < 0 or count > storage.length:
            raise ValueError("a tensor is larger than its storage")
        last = reference.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if len(data) != storage.bytes or (count and last >= storage.length):
            raise ValueError("a tensor reaches beyond its storage")
        if count == 0:
            return np.zeros(shape, dtype)
        flat = np.frombuffer(data, dtype)[reference.offset :]
        return np.lib.stride_tricks.as_strided(flat, shape, [s * dtype.itemsize for s in strides], writeable=False)


class LegacyFile(TorchFile):
    """An open file of PyTorch's format before 1.6: five pickles one after the other, then each storage's numbers behind their count."""

    def __init__(self, path: Path, file: IO[bytes]):
        self.path, self._file = path, file
        file.seek(len(MAGIC))
        protocol, _ = self._unpickle(file)
        system, _ = self._unpickle(file)
        if protocol != PROTOCOL or not isinstance(system, dict):
            raise UserError(f"{path}: is of PyTorch's old format in version {protocol}, {PROTOCOL} is read; load and save it again with "
                            "a current PyTorch")  # fmt: skip
        self._order = "<" if system.get("little_endian", True) else ">"
        self.content, storages = self._unpickle(file)
        keys, _ = self._unpickle(file)
        self._places: dict[str, int] = {}
        place, size = file.tell(), os.fstat(file.fileno()).st_size
        for key in keys if isinstance(keys, list) else []:
            if not isinstance(key, str) or key not in storages:
                raise UserError(f"{path}: is damaged (a storage that no tensor uses); take another copy")
            self._places[key] = place
            place += COUNT.itemsize + storages[key].bytes
        if place > size:
            raise UserError(f"{path}: is damaged (its tensors end at byte {place:,}, the file at {size:,}); take another copy")

    def _numbers(self, storage: StorageReference) -> bytes:
        self._file.seek(self._places[storage.key])
        count = np.frombuffer(self._file.read(COUNT.itemsize), COUNT.newbyteorder(self._order))
        if list(count) != [storage.length]:
            raise ValueError(f"storage {storage.key} is not where it should be")
        return self._file.read(storage.bytes)


@contextlib.contextmanager
def open_torch_file(path: str | Path) -> Iterator[TorchFile]:
    """Open a file of torch.save; its tensors are read on request.

    Raises:
        UserError: if the file is missing, damaged, or asks for more than tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: is not a file; check the path")
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
            old = file.read(len(MAGIC)) == MAGIC
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        if old:
            yield LegacyFile(path, file)
            return
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: is damaged or not in one of PyTorch's formats; take another copy, or load and save it again with a "
                        "current PyTorch") from error  # fmt: skip
    with archive:
        try:
            yield TorchFile(path, archive)
        except zipfile.BadZipFile as error:
            raise UserError(f"{path}: is damaged ({error}); take another copy") from error
