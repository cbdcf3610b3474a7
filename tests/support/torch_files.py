"""What torch.save writes, written by Python's own pickler with stand-ins under torch's names: PyTorch is not needed."""

import collections
import io
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np

TYPES = {"f4": "FloatStorage", "f2": "HalfStorage", "f8": "DoubleStorage", "i8": "LongStorage", "u2": "BFloat16Storage"}


class Storage:
    def __init__(self, array):
        self.array = array


class Tensor:
    def __init__(self, array, shape=None, strides=None, offset=0):
        array = np.asarray(array)
        self.storage = Storage(array)
        self.shape = array.shape if shape is None else shape
        self.strides = tuple(s // array.itemsize for s in array.strides) if strides is None else strides
        self.offset = offset

    def __reduce__(self):
        arguments = (self.storage, self.offset, self.shape, self.strides, False, collections.OrderedDict())
        return sys.modules["torch._utils"]._rebuild_tensor_v2, arguments


class TorchPickler(pickle.Pickler):
    def __init__(self, file, protocol, *more):
        super().__init__(file, protocol)
        self.arrays, self.more = [], more

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        self.arrays.append(value.array)
        kind = getattr(sys.modules["torch"], TYPES[value.array.dtype.str[1:]])
        return ("storage", kind, str(len(self.arrays) - 1), "cuda:0", value.array.size, *self.more)


def _rebuild_tensor_v2(*_):
    raise AssertionError("the reader must not call what the file names")


def install(monkeypatch) -> None:
    """Put the stand-ins where Python looks for torch."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    monkeypatch.setattr(_rebuild_tensor_v2, "__module__", "torch._utils")
    for name in TYPES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def save(path: Path, value, protocol: int = 2, root: str = "archive") -> None:
    """A zip file, as PyTorch writes since 1.6."""
    buffer = io.BytesIO()
    pickler = TorchPickler(buffer, protocol)
    pickler.dump(value)
    write_zip(path, buffer.getvalue(), [array.tobytes() for array in pickler.arrays], root)


def save_old(path: Path, value, version: int = 1001) -> None:
    """As PyTorch before 1.6: see `_legacy_save` in torch/serialization.py."""
    with path.open("wb") as file:
        for item in (
            0x1950A86A20F9469CFC6C,
            version,
            {"protocol_version": version, "little_endian": True, "type_sizes": {"int": 4}},
        ):
            pickle.dump(item, file, 2)
        pickler = TorchPickler(file, 2, None)
        pickler.dump(value)
        keys = sorted(map(str, range(len(pickler.arrays))))
        pickle.dump(keys, file, 2)
        for key in keys:
            array = pickler.arrays[int(key)]
            file.write(np.int64(min(array.size, 2**62)).tobytes() + array.tobytes())


def write_zip(path, pickled, records=(), root="archive", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", pickled)
        archive.writestr(f"{root}/version", "3\n")
        for key, data in enumerate(records):
            archive.writestr(f"{root}/data/{key}", data)
