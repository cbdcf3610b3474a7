"""Named tensors and a text in a `.ckpt` or `.safetensors` file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from cswin.errors import UserError

SUFFIXES = (".ckpt", ".safetensors")
PYTORCH_SUFFIXES = (".pth", ".pt", ".tar")  # timm writes .pth.tar; see cswin.convert
RECORD_KEY = "cswin_record"
REMEDY = "take another copy. If it is a stage's own file, remove it: the same snakemake command writes it again from the state"


def known_suffix(path: Path, suffixes: Iterable[str] = SUFFIXES) -> str:
    """The path's suffix in lower case.

    Raises:
        UserError: if it is none of `suffixes`.
    """
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{path}: the suffix decides the format and must be one of {', '.join(suffixes)}")
    return path.suffix.lower()


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], str | None]:
    """All tensors of a `.ckpt` or `.safetensors` file, of any origin, and cswin's record as JSON text if there is one.

    Raises:
        UserError: if the file is missing or cannot be read as what its suffix says.
    """
    suffix = known_suffix(path)
    if not path.is_file():
        raise UserError(f"{path}: is not a file; check the path")
    return _read_ckpt(path) if suffix == ".ckpt" else _read_safetensors(path)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], record: str) -> None:
    """Write tensors in the format of the suffix, and the record as a text under `RECORD_KEY`."""
    if known_suffix(path) == ".ckpt":
        _write_ckpt(path, tensors, record)
    else:
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        try:  # one key only: safetensors writes several in random order
            save_file(dict(tensors), path, metadata={RECORD_KEY: record})
        except SafetensorError as error:  # a full disk; `atomic_path` expects an OSError
            raise OSError(str(error)) from error


def _write_ckpt(path: Path, tensors: Mapping[str, np.ndarray], record: str) -> None:
    import mindspore as ms

    entries = [{"name": name, "data": ms.Tensor.from_numpy(value)} for name, value in tensors.items()]
    ms.save_checkpoint(entries, str(path), append_dict={RECORD_KEY: record}, crc_check=True)


def _read_ckpt(path: Path) -> tuple[dict[str, np.ndarray], str | None]:
    import mindspore as ms

    try:
        entries = ms.load_checkpoint(str(path), crc_check=_has_checksum(path))
    except Exception as error:  # MindSpore raises many kinds, depending on where the damage is
        raise UserError(f"{path}: cannot be read as a MindSpore checkpoint: it is damaged or something else; take another "
                        "copy") from error  # fmt: skip
    record = entries.pop(RECORD_KEY, None)
    tensors = {name: _to_numpy(value) for name, value in entries.items() if isinstance(value, ms.Tensor)}
    return tensors, record if isinstance(record, str) else None


def _has_checksum(path: Path) -> bool:
    """Whether a `.ckpt` ends with MindSpore's checksum (7 bytes of name, 10 of value)."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 17))
        return file.read(7) == b"crc_num"


def _to_numpy(value) -> np.ndarray:
    import mindspore as ms

    return (value.astype(ms.float32) if value.dtype == ms.bfloat16 else value).asnumpy()


def _widened(data: bytes) -> np.ndarray:
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], str | None]:
    from safetensors import SafetensorError, deserialize, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            halved = {name for name in file.keys() if file.get_slice(name).get_dtype() == "BF16"}  # noqa: SIM118 (not a dictionary)
            tensors = {name: file.get_tensor(name) for name in file.keys() if name not in halved}  # noqa: SIM118
            metadata = file.metadata() or {}
        if halved:  # NumPy has no bfloat16: the upper half of a float32
            raw = {name: facts for name, facts in deserialize(path.read_bytes()) if name in halved}
            tensors |= {name: _widened(facts["data"]).reshape(facts["shape"]) for name, facts in raw.items()}
        return tensors, metadata.get(RECORD_KEY)
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error}): it is damaged or something else; "
                        f"{REMEDY}") from error  # fmt: skip
