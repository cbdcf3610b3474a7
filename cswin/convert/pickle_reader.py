"""Reading PyTorch's pickles without trusting them.

A pickle is a program: it names functions and calls them. Here it can name the handful that describe tensors and plain
containers, and each of those names stands for a function of this module that only writes down what it is given. A few more stand for
`Inert`, which keeps nothing: what training tools save beside the weights. Every other name is refused when it is read, before anything
could be called. Nothing that a file names is imported or executed.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from cswin.errors import UserError

# torch's storage classes -> NumPy's types, little-endian; bfloat16 has none and is read as its 16 bits.
STORAGE_TYPES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class _Sealed:
    """Base class of objects that a pickle must not change: its BUILD instruction is rejected."""

    __slots__ = ()

    def __setstate__(self, state):
        raise pickle.UnpicklingError(f"the file sets attributes of a {type(self).__name__}")


@dataclass(frozen=True, slots=True)
class StorageType(_Sealed):
    """A storage class by its NumPy type. It cannot be called."""

    dtype: str

    __setstate__ = _Sealed.__setstate__


@dataclass(frozen=True, slots=True)
class StorageReference(_Sealed):
    """A sequence of `length` numbers in the archive's record `key`."""

    dtype: str
    key: str
    length: int

    __setstate__ = _Sealed.__setstate__

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return self.length * (2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize)


@dataclass(frozen=True, slots=True)
class TensorReference(_Sealed):
    """A tensor as the file describes it, unchecked: a view of a storage, in units of numbers, not bytes."""

    storage: StorageReference
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    __setstate__ = _Sealed.__setstate__


class PlainDict(dict):
    """Stands for OrderedDict; drops the attributes that state dictionaries carry (`_metadata`)."""

    __slots__ = ()

    def __setstate__(self, state):
        """Ignore the state."""


class Inert:
    """Stands for an object that holds no weights, such as an argparse Namespace; takes what it is given and keeps nothing."""

    __slots__ = ()

    def __init__(self, *_):
        """Ignore what it is made of."""

    def __setstate__(self, state):
        """Ignore the state."""


class _Function(_Sealed):
    """A function that a pickle may call and cannot change."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable):
        self._call = call

    def __call__(self, *arguments):
        return self._call(*arguments)


def _rebuild_tensor(storage, offset, shape, strides, *_) -> TensorReference:
    """torch._utils._rebuild_tensor_v2; requires_grad, hooks and metadata are ignored."""
    return TensorReference(storage, offset, shape, strides)


def _rebuild_parameter(tensor, *_) -> TensorReference:
    """torch._utils._rebuild_parameter: the tensor inside."""
    if not isinstance(tensor, TensorReference):
        raise pickle.UnpicklingError("a parameter without a tensor")
    return tensor


# The options of a training script; NumPy's scalars (a best accuracy), with what their pickles are made of.
INERT = (
    ("argparse", "Namespace"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
)


def _allowed() -> dict[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): _Function(PlainDict),
        ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuild_tensor),
        ("torch._utils", "_rebuild_parameter"): _Function(_rebuild_parameter),
    }
    names |= dict.fromkeys(INERT, Inert)
    return names | {("torch", name): StorageType(dtype) for name, dtype in STORAGE_TYPES.items()}


class RefusedName(UserError):
    """The pickle names an object that is neither a tensor nor a plain container; the message is its full name."""


class _Reader(pickle.Unpickler):
    """An unpickler that knows only the allowed names."""

    def __init__(self, file: IO[bytes]):
        super().__init__(file, encoding="utf-8")
        self._names = _allowed()
        self.storages: dict[str, StorageReference] = {}

    def find_class(self, module: str, name: str):
        """The stand-in for a name, never the named object itself."""
        if (module, name) not in self._names:
            raise RefusedName(f"{module}.{name}")
        return self._names[module, name]

    def persistent_load(self, pid):
        """torch's description of a storage: ("storage", class, record, device, length), in old files with a None behind."""
        match pid:
            case ("storage", StorageType(dtype=dtype), str(key), str(), int(length), *rest) if (
                rest in ([], [None]) and length >= 0
            ):
                return self.storages.setdefault(key, StorageReference(dtype, key, length))
        raise pickle.UnpicklingError("a storage is described in an unknown way")


def read_pickle(file: IO[bytes]) -> tuple[Any, dict[str, StorageReference]]:
    """The content: containers, numbers, strings, `TensorReference`s and `Inert`s; and the storages by their keys.

    Raises:
        RefusedName: if the pickle names anything else; nothing was executed.
        ValueError: if it is not a valid pickle of that kind.
    """
    try:
        reader = _Reader(file)
        return reader.load(), reader.storages
    except UserError:
        raise
    except Exception as error:  # a damaged pickle fails in any way
        raise ValueError(f"not a readable pickle: {error}") from error
