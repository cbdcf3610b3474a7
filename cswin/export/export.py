"""`cswin export`: the network in another runtime's format, compared with the original, and its preprocessing as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cswin.atomic import atomic_path
from cswin.checkpoint import Checkpoint, CheckpointRecord
from cswin.errors import UserError
from cswin.tensor_file import RECORD_KEY, known_suffix

if TYPE_CHECKING:
    from cswin.inference import WeightedCSWin

SUFFIXES = (".onnx", ".mindir")
TOLERANCE = (
    1e-5  # of the logits, relative to the largest one: the project's limit for every port, see tests/model/test_model_golden.py
)
SEED = 0  # seed of the random images of the check


@dataclass(frozen=True)
class Exported:
    """What was written: the file, the description beside it, the largest difference of a logit in the check, the set of weights."""

    path: Path
    description: Path
    difference: float
    which: str


def export(checkpoint: Checkpoint, path: str | Path, batch_size: int = 1, which: str | None = None) -> Exported:
    """Write a network with one set of its weights as ONNX or MINDIR, by the suffix.

    A JSON file with the same name and `.json` describes input and output, preprocessing, class names and architecture.

    Args:
        checkpoint: the network.
        path: the new file.
        batch_size: of a MINDIR, whose shapes are fixed; in ONNX the batch is free.
        which: set of weights, see `Checkpoint.select`.

    Raises:
        UserError: if the suffix is unknown, a package is missing, or the file does not give the network's logits; then no file
            remains.
    """
    path = Path(path)
    suffix = known_suffix(path, SUFFIXES)
    from cswin.inference import WeightedCSWin  # imports MindSpore, which cannot be imported after onnx (both set up protobuf)

    which, weights = checkpoint.select(which)
    network = WeightedCSWin(checkpoint.record.architecture, weights)
    if suffix == ".onnx":
        _require_onnx()
    description = path.with_name(f"{path.name}.json")
    with atomic_path(path) as temporary, atomic_path(description) as beside:
        if suffix == ".onnx":
            _write_onnx(checkpoint.record, weights, temporary)
            difference = max(_difference(network, _run_onnx(temporary), n) for n in (1, 3))
        else:
            _write_mindir(network, temporary, batch_size)
            difference = _difference(network, _run_mindir(temporary), batch_size)
        if not difference <= TOLERANCE:
            raise UserError(f"{path}: not written, because its logits differ from the network's by {difference:.1e}, more than "
                            f"{TOLERANCE:.0e} of the largest; please report this with the checkpoint")  # fmt: skip
        described = {"weights": which} | _describe(checkpoint.record, suffix, batch_size)
        beside.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return Exported(path, description, difference, which)


def _describe(record: CheckpointRecord, suffix: str, batch_size: int) -> dict:
    """What a user of the file needs to feed it and to read its answer."""
    arch = record.architecture
    batch = "any" if suffix == ".onnx" else batch_size
    return {
        "input": {
            "name": "images",
            "shape": [batch, arch.in_channels, arch.image_size, arch.image_size],
            "dtype": "float32",
            "layout": "NCHW, RGB" if arch.in_channels == 3 else "NCHW",
            "values": "(pixel / 255 - mean) / std, per channel",
        },
        "output": {"name": "logits", "shape": [batch, arch.num_classes], "dtype": "float32", "probabilities": "softmax"},
        "resize": "short side to int(image_size / crop_ratio), then the centre image_size x image_size",
    } | record.to_dict()


def _difference(network: WeightedCSWin, run, n: int) -> float:
    """Largest difference of a logit on n random images, relative to the largest logit."""
    import mindspore as ms

    arch = network.network.arch
    images = np.random.default_rng(SEED).standard_normal((n, arch.in_channels, arch.image_size, arch.image_size), np.float32)
    wanted = network(ms.Tensor(images)).asnumpy()
    return float(np.abs(run(images) - wanted).max() / max(1e-6, np.abs(wanted).max()))


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"export to ONNX needs the package {error.name}: pip install -e '.[export]' in the repository"
        ) from error


def _write_onnx(record: CheckpointRecord, weights: dict[str, np.ndarray], path: Path) -> None:
    import onnx

    from cswin.export.onnx_graph import onnx_model

    metadata = {RECORD_KEY: json.dumps(record.to_dict(), sort_keys=True)}
    onnx.save(onnx_model(record.architecture, weights, metadata), str(path))


def _run_onnx(path: Path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def _write_mindir(network: WeightedCSWin, path: Path, batch_size: int) -> None:
    import mindspore as ms

    arch = network.network.arch
    images = ms.Tensor(np.zeros((batch_size, arch.in_channels, arch.image_size, arch.image_size), np.float32))
    ms.export(network, images, file_name=str(path), file_format="MINDIR")


def _run_mindir(path: Path):
    import mindspore as ms

    graph = ms.nn.GraphCell(ms.load(str(path)))
    return lambda images: graph(ms.Tensor(images)).asnumpy()
