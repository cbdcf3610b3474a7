"""Self-describing checkpoints: weights, their moving average (EMA), and a record of their architecture and origin.

The suffix selects one of two formats: `.ckpt` (MindSpore's own; `mindspore.load_checkpoint` reads it) and `.safetensors` (which
many tools read, and which needs no MindSpore here). Both contain the weights under the authors' parameter names, their moving
average under the same names with the prefix `ema.`, and the record as JSON under the key `cswin_record` (a string entry in
`.ckpt`, the metadata in `.safetensors`). A SHA-256 over record and tensors detects damaged files.

Equal content gives equal bytes in both formats: names are written in sorted order, and nothing depends on the time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from cswin.atomic import atomic_path
from cswin.data.images.preprocessing import Preprocessing
from cswin.errors import UserError
from cswin.model.variants import Architecture
from cswin.model.weights import Layout
from cswin.tensor_file import PYTORCH_SUFFIXES, REMEDY, known_suffix, read_tensors, write_tensors

EMA_PREFIX = "ema."
FORMAT_VERSION = 1
HEAD = ("head.weight", "head.bias")
LISTED = 50  # parameters named in one error message


@dataclass(frozen=True)
class CheckpointRecord:
    """The record of a checkpoint: architecture and origin of its weights.

    Attributes:
        architecture: of the network.
        class_names: name of each output of the head, in its order.
        preprocessing: preprocessing of the images for the network.
        provenance: origin of the weights, JSON values: configuration, stage, epoch, step, hash of the manifest, git commit,
            versions, or the converted file.
    """

    architecture: Architecture
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    provenance: dict = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "class_names", tuple(self.class_names))
        arch, prep = self.architecture, self.preprocessing
        if len(self.class_names) != arch.num_classes:
            raise UserError(f"class_names: {len(self.class_names)} names for a head of {arch.num_classes} classes")
        if (prep.image_size, prep.channels) != (arch.image_size, arch.in_channels):
            raise UserError(f"preprocessing: images of {prep.image_size} pixels with {prep.channels} channels do not fit an "
                            f"architecture for {arch.image_size} pixels with {arch.in_channels} channels")  # fmt: skip

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return {
            "architecture": self.architecture.to_dict(),
            "class_names": list(self.class_names),
            "preprocessing": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.preprocessing).items()},
            "provenance": self.provenance,
        }

    @classmethod
    def from_dict(cls, values: Mapping) -> CheckpointRecord:
        """Inverse of `to_dict`.

        Raises:
            UserError: if something is missing, unknown or inconsistent.
        """
        try:
            return cls(
                architecture=Architecture.from_dict(values["architecture"]),
                class_names=tuple(values["class_names"]),
                preprocessing=Preprocessing(**values["preprocessing"]),
                provenance=dict(values["provenance"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the checkpoint's record is incomplete or of another version ({error})") from error


@dataclass
class Checkpoint:
    """Weights, float32, by the authors' parameter names; `ema` (same names and shapes) or None; and their record."""

    record: CheckpointRecord
    weights: dict[str, np.ndarray]
    ema: dict[str, np.ndarray] | None = None

    def select(self, which: str | None = None) -> tuple[str, dict[str, np.ndarray]]:
        """The name, `raw` or `ema`, and the weights of one set.

        Args:
            which: its name; None: the set by which the epoch was selected (evaluation.select_by of the configuration that trained
                the checkpoint); without this key the moving average if there is one.

        Raises:
            UserError: if `which` is ema and the checkpoint has no moving average.
        """
        if self.ema is None:
            if which == "ema":
                raise UserError("ema: the checkpoint holds one set of weights and no moving average; use raw")
            return "raw", self.weights
        config = self.record.provenance.get("config") or {}
        which = which or config.get("evaluation", {}).get("select_by", "ema")
        return which, self.ema if which == "ema" else self.weights


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> str:
    """Write a checkpoint atomically: after an interruption `path` is unchanged.

    Returns:
        The file's SHA-256, hexadecimal.

    Raises:
        UserError: if the suffix is unknown or the file cannot be written.
        ValueError: if the tensors are not float32 or the moving average does not match the weights.
    """
    path = Path(path)
    known_suffix(path)
    tensors = _flatten(checkpoint)
    record = {"format_version": FORMAT_VERSION} | checkpoint.record.to_dict()
    text = json.dumps(record | {"sha256": _digest(record, tensors)}, sort_keys=True)
    with atomic_path(path) as temporary:
        write_tensors(temporary, tensors, text)
        return file_sha256(temporary)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        UserError: if the file is missing, damaged, or was not written by `save_checkpoint`.
    """
    path = Path(path)
    if path.suffix.lower() in PYTORCH_SUFFIXES:
        raise UserError(f"{path}: is a PyTorch file; turn it into a checkpoint with `cswin convert-weights`")
    return parse_checkpoint(path, *read_tensors(path))


def parse_checkpoint(path: Path, tensors: dict[str, np.ndarray], text: str | None) -> Checkpoint:
    """The checkpoint from the result of `read_tensors(path)`; errors as `load_checkpoint`."""
    if text is None:
        raise UserError(f"{path}: has no record of its architecture, so it was not written by cswin or is cut short; "
                        "turn weights of other origin into a checkpoint with `cswin convert-weights`")  # fmt: skip
    try:
        record = json.loads(text)
        version, checksum = record["format_version"], record.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is damaged (its record cannot be read); {REMEDY}") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{path}: has format version {version}, this cswin reads {FORMAT_VERSION}; "
                        "read it with the version of cswin that wrote it")  # fmt: skip
    if _digest(record, tensors) != checksum:
        raise UserError(f"{path}: is damaged (its content does not match its checksum); {REMEDY}")
    try:
        parsed = CheckpointRecord.from_dict(record)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    weights = {k: v for k, v in tensors.items() if not k.startswith(EMA_PREFIX)}
    ema = {k.removeprefix(EMA_PREFIX): v for k, v in tensors.items() if k.startswith(EMA_PREFIX)}
    return Checkpoint(parsed, weights, ema or None)


def fitting_weights(weights: Mapping[str, np.ndarray], found: Architecture, wanted: Architecture,
                    free: Iterable[str] = (), file: str | Path = "the checkpoint") -> dict[str, np.ndarray]:  # fmt: skip
    """The weights that a network takes from a checkpoint: all, or all except the head if it has other classes.

    Args:
        weights: float32 arrays by parameter name.
        found: the architecture that they belong to.
        wanted: the architecture of the network.
        free: fields that may differ: `num_classes` (then the head is left out), `image_size` and `split_size` (they do not affect
            the shapes of parameters, but the function of the network).
        file: its name, for error messages.

    Raises:
        UserError: if the architectures differ (with the keys) or parameters are missing, surplus or misshapen (with the names).
    """
    differences = [d for d in found.differences(wanted) if d.split(":")[0] not in free]
    if differences:
        raise UserError(f"{file}: holds another architecture than the network: " + "; ".join(differences))
    shapes = Layout.of(found).shapes
    check_parameters({name: value.shape for name, value in weights.items()}, shapes, file)
    left_out = HEAD if found.num_classes != wanted.num_classes else ()
    return {name: weights[name] for name in shapes if name not in left_out}


def check_parameters(found: Mapping[str, tuple], wanted: Mapping[str, tuple], file: str | Path = "the checkpoint") -> None:
    """Compare names and shapes.

    Raises:
        UserError: with a list of missing, surplus and misshapen parameters.
    """
    problems = {
        "missing": [f"{k} {tuple(wanted[k])}" for k in wanted if k not in found],
        "surplus": [f"{k} {tuple(found[k])}" for k in found if k not in wanted],
        "misshapen": [f"{k} {tuple(found[k])}, not {tuple(wanted[k])}"
                      for k in wanted if k in found and tuple(found[k]) != tuple(wanted[k])],
    }  # fmt: skip
    lines = [f"{len(names)} {kind}:{_listing(names)}" for kind, names in problems.items() if names]
    if lines:
        raise UserError(f"{file}: its parameters do not fit the architecture, nothing was changed\n" + "\n".join(lines))


def _listing(names: list[str]) -> str:
    more = [f"… and {len(names) - LISTED} more"] if len(names) > LISTED else []
    return "".join(f"\n  {name}" for name in names[:LISTED] + more)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flatten(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Weights and moving average in one dictionary, sorted by name."""
    weights, ema = checkpoint.weights, checkpoint.ema
    if ema is not None and {k: v.shape for k, v in ema.items()} != {k: v.shape for k, v in weights.items()}:
        raise ValueError("the moving average and the weights have different names or shapes")
    tensors = weights | {EMA_PREFIX + k: v for k, v in (ema or {}).items()}
    wrong = {k: str(v.dtype) for k, v in tensors.items() if v.dtype != np.float32}
    if wrong:
        raise ValueError(f"checkpoints hold float32, not {wrong}")
    return {k: np.ascontiguousarray(tensors[k]) for k in sorted(tensors)}


def _digest(record: dict, tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the record and the tensors' names, types, shapes and contents, in the order of the names."""
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name in sorted(tensors):
        value = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        digest.update(value.data)
    return digest.hexdigest()
