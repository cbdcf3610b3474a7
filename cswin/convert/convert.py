"""`cswin convert-weights`: conversion of weights between file formats and origins, with their record."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cswin import checkpoint as ckpt
from cswin.checkpoint import Checkpoint, CheckpointRecord
from cswin.class_names import imagenet_words, numbers, words
from cswin.convert.architecture import Choice, infer_architecture
from cswin.convert.names import parameters, summary
from cswin.convert.pickle_reader import TensorReference
from cswin.convert.torch_file import TorchFile, open_torch_file
from cswin.data.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from cswin.errors import UserError
from cswin.model.variants import Architecture
from cswin.model.weights import Layout
from cswin.provenance import git_commit, versions
from cswin.tensor_file import PYTORCH_SUFFIXES, RECORD_KEY, SUFFIXES, known_suffix, read_tensors

Weights = dict[str, np.ndarray]
RAW, EMA = "state_dict", "state_dict_ema"
RAW_KEYS, EMA_KEYS = (RAW, "model", "model_state_dict"), (EMA, "model_ema")  # as training scripts call them
WHICH = ("auto", "ema", "raw", "both")
HEAD_STD = 0.02  # the authors' initialisation of linear layers


@dataclass(frozen=True)
class Options:
    """The user's options; None and empty: from the file.

    Attributes:
        which: `ema` or `raw`: that set alone; `both`: keep both sets; `auto`: everything that a checkpoint of cswin holds, and
            of a PyTorch file the moving average where there is one.
        choice: the architecture, where the shapes do not decide it.
        new_head: replace the head by one of that many classes, initialised from `seed`.
        class_names: of the outputs; else the file's own, or those of ImageNet-1K for 1,000 outputs without names.
        preprocessing: fields of `Preprocessing` that differ from the record's, or from ImageNet's.
    """

    which: str = "auto"
    choice: Choice = Choice()
    new_head: int | None = None
    seed: int = 0
    class_names: tuple[str, ...] | None = None
    preprocessing: Mapping = dataclasses.field(default_factory=dict)


@dataclass
class FileContent:
    """A file's content: `weights` and perhaps `ema` as they shall be written, its record, and where they come from (`left_out`: what
    else the file holds)."""

    weights: Weights
    ema: Weights | None
    record: CheckpointRecord | None
    origin: dict


def convert_weights(file: str | Path, target: str | Path, options: Options = Options()) -> Checkpoint:
    """Read `file` (.pth, .pt, .tar of PyTorch; .ckpt; .safetensors), write `target` (.ckpt, .safetensors).

    Returns:
        The written content.

    Raises:
        UserError: if anything does not fit; then nothing is written.
    """
    file, target = Path(file), Path(target)
    if target.suffix.lower() in PYTORCH_SUFFIXES:
        raise UserError(f"{target}: PyTorch's own format is not written; write .safetensors, which PyTorch reads: "
                        "safetensors.torch.load_file(path) (--which ema or raw gives the authors' names alone)")  # fmt: skip
    known_suffix(target)
    if target.exists() and file.exists() and target.samefile(file):
        raise UserError(f"{target}: is the input file itself; give another name")
    checkpoint = converted(file, options)
    ckpt.save_checkpoint(target, checkpoint)
    return checkpoint


def converted(file: Path, options: Options) -> Checkpoint:
    """The weights in a file as a checkpoint; errors as `convert_weights`."""
    known_suffix(file, PYTORCH_SUFFIXES + SUFFIXES)
    return _complete(read_weights(file, options.which), options, file)


def described(checkpoint: Checkpoint, path: Path) -> list[str]:
    """What a converted file holds, and what was left out, as lines for a person."""
    arch, names = checkpoint.record.architecture, checkpoint.record.class_names
    numbers = sum(v.size for v in checkpoint.weights.values())
    sets = "weights and their moving average" if checkpoint.ema is not None else "one set of weights"
    first, last = (name if words(name) == name else f"{name} ({words(name)})" for name in (names[0], names[-1]))
    lines = [
        f"{path}: {sets}, {numbers:,} parameters, {arch.num_classes} classes",
        "  " + ", ".join(f"{key} {value}" for key, value in arch.to_dict().items()),
        f"  classes {first} to {last}",
    ]
    conversion = checkpoint.record.provenance["conversions"][-1]
    if conversion.get("weights"):
        lines.append(f"  from {conversion['weights']} of {conversion['file']}")
    if conversion.get("left_out"):
        lines.append(f"  left out: {', '.join(conversion['left_out'])}")
    return lines


def read_weights(path: Path, which: str) -> FileContent:
    """The float32 weights of any file that can be converted.

    Raises:
        UserError: if the file cannot be read or does not have the requested set.
    """
    if path.suffix.lower() in PYTORCH_SUFFIXES:
        with open_torch_file(path) as file:
            return _read_torch(file, which)
    tensors, text = read_tensors(path)
    if text is not None:
        known = ckpt.parse_checkpoint(path, tensors, text)
        weights, ema = _choose(known.weights, known.ema, "both" if which == "auto" and known.ema else which, path)
        return FileContent(weights, ema, known.record, {})
    raw = {k: v for k, v in tensors.items() if not k.startswith(ckpt.EMA_PREFIX)}
    averages = {k.removeprefix(ckpt.EMA_PREFIX): v for k, v in tensors.items() if k not in raw}
    sets, left_out = {}, []
    for name, entries in (("raw", raw), ("ema", averages)):
        found, others = parameters(entries)
        sets[name] = {k: _float32(k, v, path) for k, v in found.items()} or None
        left_out += others
    weights, ema = _choose(sets["raw"], sets["ema"], which, path)
    if weights is None:
        raise UserError(f"{path}: holds no weights, only {', '.join(summary(left_out)) or 'nothing'}")
    return FileContent(weights, ema, None, {"left_out": summary(left_out)})


def _read_torch(file: TorchFile, which: str) -> FileContent:
    content, path = file.content, file.path
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a dictionary of weights")
    keys = [next((key for key in names if content.get(key) is not None), None) for names in (RAW_KEYS, EMA_KEYS)]
    raw, ema = (content.get(key) for key in keys)
    if raw is None and ema is None:
        raw = content  # a bare dictionary of tensors
    record = content.get(RECORD_KEY)
    known = None
    if isinstance(record, str):
        try:
            known = CheckpointRecord.from_dict(json.loads(record))
        except (ValueError, UserError) as error:
            raise UserError(f"{path}: its {RECORD_KEY} cannot be read ({error})") from error
    keep_both = which == "auto" and known is not None and raw is not None and ema is not None
    chosen, average = _choose(raw, ema, "both" if keep_both else which, path)
    weights, left_out = _state_dict(file, chosen)
    averages, others = (None, []) if average is None else _state_dict(file, average)
    origin = {}
    if raw is not content:
        key_of = {id(raw): keys[0], id(ema): keys[1]}
        origin = {k: content[k] for k in ("arch", "epoch", "version") if isinstance(content.get(k), str | int | float)}
        used = {key_of[id(chosen)], key_of.get(id(average)), *origin, RECORD_KEY}
        origin["weights"] = key_of[id(chosen)]
        others += [str(key) for key in content if key not in used]
    return FileContent(weights, averages, known, origin | {"left_out": summary(others + left_out)})


def _choose(raw, ema, which: str, path: Path) -> tuple:
    """(weights, moving average to keep or None)."""
    missing = [n for n, found in (("raw", raw), ("ema", ema)) if found is None and which in (n, "both")]
    if missing:
        raise UserError(f"{path}: has no {' and no '.join(missing)} weights, --which {which} cannot be met; "
                        f"use --which {'ema' if raw is None else 'raw'}")  # fmt: skip
    if which == "both":
        return raw, ema
    use_raw = which == "raw" or ema is None
    return (raw if use_raw else ema), None


def _state_dict(file: TorchFile, entries) -> tuple[Weights, list[str]]:
    """Tensors by the network's names, and the names of what else is there."""
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{file.path}: its state dictionary is empty or not a dictionary")
    tensors = {k: v for k, v in entries.items() if isinstance(k, str) and isinstance(v, TensorReference)}
    foreign = [str(k) for k in entries if k not in tensors]
    found, beside = parameters(tensors)
    if not found:
        raise UserError(f"{file.path}: holds no state dictionary, as {', '.join(RAW_KEYS + EMA_KEYS)}, and no tensors of a network: "
                        f"{', '.join((foreign + beside)[:20])}")  # fmt: skip
    return {k: _float32(k, file.array(v), file.path) for k, v in found.items()}, foreign + beside


def _float32(name: str, value: np.ndarray, path: Path) -> np.ndarray:
    if value.dtype.kind != "f":
        raise UserError(f"{path}: {name} holds {value.dtype}, no parameter of a CSWin does; check that it is the right file")
    return np.ascontiguousarray(value, np.float32)


def _complete(content: FileContent, options: Options, path: Path) -> Checkpoint:
    """Weights with architecture, class names and preprocessing, all checked against each other."""
    shapes = {k: v.shape for k, v in content.weights.items()}
    arch = _architecture(content, shapes, options.choice, path)
    sets = [content.weights] + ([] if content.ema is None else [content.ema])
    if options.new_head is not None:
        arch = arch.replace(num_classes=options.new_head)
        head = _initial_head(arch, options.seed)
        sets = [{k: v for k, v in weights.items() if k not in ckpt.HEAD} | head for weights in sets]
    for weights in sets:
        ckpt.check_parameters({k: v.shape for k, v in weights.items()}, Layout.of(arch).shapes, path)
    provenance = dict(content.record.provenance) if content.record else {}
    conversion = {
        "file": path.name,
        "sha256": ckpt.file_sha256(path),
        "which": options.which,
        "new_head": options.new_head,
        "git": git_commit(),
        "versions": versions(),
    } | content.origin
    provenance["conversions"] = [*provenance.get("conversions", []), conversion]
    record = CheckpointRecord(
        arch, _class_names(content, arch, options, path), _preprocessing(content, arch, options.preprocessing), provenance
    )
    return Checkpoint(record, sets[0], sets[1] if len(sets) == 2 else None)


def _architecture(content: FileContent, shapes: dict, choice: Choice, path: Path) -> Architecture:
    if content.record is None:
        return infer_architecture(shapes, choice, str(path))
    known = content.record.architecture
    if choice != Choice():
        asked = known.replace(**choice.changes())
        if choice.arch is not None:
            asked = infer_architecture(shapes, choice, str(path))
        if asked != known:
            raise UserError(f"{path}: says of itself what it is, and differs from what was asked for: "
                            + "; ".join(known.differences(asked)))  # fmt: skip
    return known


def _initial_head(arch: Architecture, seed: int) -> Weights:
    weight = np.random.default_rng(seed).normal(0.0, HEAD_STD, (arch.num_classes, arch.dims[3]))
    return {"head.weight": weight.astype(np.float32), "head.bias": np.zeros(arch.num_classes, np.float32)}


def _class_names(content: FileContent, arch: Architecture, options: Options, path: Path) -> tuple[str, ...]:
    if options.class_names is not None:
        if len(options.class_names) != arch.num_classes:
            raise UserError(f"{path}: has a head of {arch.num_classes} classes, {len(options.class_names)} names were given; "
                            "a head of another size is replaced with --new-head N")  # fmt: skip
        return options.class_names
    unnamed = numbers(arch.num_classes)
    if options.new_head is not None:
        return unnamed
    names = content.record.class_names if content.record is not None else unnamed
    return tuple(imagenet_words()) if names == unnamed and arch.num_classes == len(imagenet_words()) else names


def _preprocessing(content: FileContent, arch: Architecture, given: Mapping) -> Preprocessing:
    if content.record is not None:
        return dataclasses.replace(content.record.preprocessing, **given)
    if arch.in_channels not in (1, 3) and not {"mean", "std"} <= set(given):
        raise UserError(f"the network takes images of {arch.in_channels} channels: give --mean and --std")
    usual = {"crop_ratio": 1.0 if arch.image_size >= 384 else 0.9, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return Preprocessing(**usual | dict(given), image_size=arch.image_size, channels=arch.in_channels)
