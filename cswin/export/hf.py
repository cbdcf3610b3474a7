"""`cswin export hf`: a folder for Hugging Face's hub, with the files that timm and others read."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cswin.atomic import atomic_path
from cswin.checkpoint import Checkpoint, CheckpointRecord, file_sha256, load_checkpoint, save_checkpoint
from cswin.class_names import imagenet_words, words
from cswin.convert.published import ACCURACY
from cswin.errors import UserError
from cswin.layout import RunLayout, StageLayout
from cswin.model.variants import STRIDES, name_of
from cswin.model.weights import GROUPS, Layout
from cswin.report.files import load_evaluation
from cswin.report.render import render

_LINK = re.compile(r"\]\(([^):#]+)\)")  # to a file beside the page


@dataclass(frozen=True)
class Source:
    """A checkpoint and what the workflow has written about it.

    Attributes:
        path: the checkpoint's file.
        card: the run card; None: there is none.
        evaluation: of this checkpoint, as in evaluation.json; None: it was not evaluated.
    """

    path: Path
    card: Path | None
    evaluation: dict[str, Any] | None

    @classmethod
    def find(cls, path: Path) -> Source:
        """A checkpoint's file with the card and the evaluation beside it, if it is a stage's.

        Raises:
            UserError: if the evaluation is of another checkpoint.
        """
        path = path.absolute()
        stage, run = StageLayout(path.parent), RunLayout(path.parent.parent)
        if path != stage.checkpoint or not stage.record.is_file():
            return cls(path, None, None)
        evaluation = load_evaluation(stage)
        if evaluation and evaluation["checkpoint"] != file_sha256(path):
            raise UserError(
                f"{stage.evaluation}: is of another checkpoint than {path}; evaluate this one: snakemake {stage.evaluation}"
            )
        return cls(path, run.card if run.card.is_file() else None, evaluation)


def export_hf(source: Source, folder: Path, which: str | None = None, licence: str | None = None) -> str:
    """Write config.json, model.safetensors with one set of weights, README.md, and the files that the run card shows or links.

    Args:
        source: the checkpoint.
        folder: is made; files of these names in it are replaced.
        which: set of weights, see `Checkpoint.select`.
        licence: of the weights, as the hub names it.

    Returns:
        The name of the set.

    Raises:
        UserError: if the checkpoint cannot be read or the folder cannot be written.
    """
    checkpoint = load_checkpoint(source.path)
    which, weights = checkpoint.select(which)
    try:
        card = source.card.read_text(encoding="utf-8") if source.card else None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source.card}: cannot be read ({error}); write it again: snakemake {source.card} -f") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made a folder ({error.strerror}); give another name") from error
    save_checkpoint(folder / "model.safetensors", Checkpoint(checkpoint.record, weights))
    _write(folder / "config.json", json.dumps(timm_config(checkpoint.record), indent=2, ensure_ascii=False) + "\n")
    front = front_matter(folder.name, checkpoint.record, (source.evaluation or {}).get(which), licence)
    _write(folder / "README.md", _page(folder.name, checkpoint.record, front, card, which))
    for link in _LINK.findall(card or ""):
        file = source.card.parent / link
        if file.is_file() and file.resolve().is_relative_to(source.card.parent.resolve()):
            (folder / link).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / link)
    return which


def timm_config(record: CheckpointRecord) -> dict[str, Any]:
    """The content of config.json, as timm writes it.

    The name of the architecture is that of the authors' code where it has one, else this project's.
    """
    arch, preprocessing = record.architecture, record.preprocessing
    name = name_of(arch) or "cswin"
    size, pooled = (arch.in_channels, arch.image_size, arch.image_size), arch.image_size // STRIDES[-1]
    described = {class_name: words(class_name) for class_name in record.class_names}
    return {
        "architecture": name.replace("cswin", "CSWin", 1) if name in ACCURACY else name,
        "num_classes": arch.num_classes,
        "num_features": arch.dims[-1],
        "global_pool": "avg",
        "label_names": list(record.class_names),
        **({"label_descriptions": described} if any(k != v for k, v in described.items()) else {}),
        "model_args": {"img_size": arch.image_size},
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": list(size),
            "fixed_input_size": True,
            "interpolation": preprocessing.interpolation,
            "crop_pct": preprocessing.crop_ratio,
            "crop_mode": "center",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": arch.num_classes,
            "pool_size": [pooled, pooled],
            "first_conv": "stage1_conv_embed.0",
            "classifier": "head",
        },
    }


def front_matter(name: str, record: CheckpointRecord, figures: dict[str, Any] | None, licence: str | None) -> dict[str, Any]:
    """The model card's metadata.

    Args:
        name: of the model.
        record: of the checkpoint.
        figures: of its evaluation on the validation set; None: it was not evaluated.
        licence: of the weights; None: not said.
    """
    imagenet = record.class_names == tuple(imagenet_words())
    front: dict[str, Any] = {"license": licence} if licence else {}
    front |= {"pipeline_tag": "image-classification", "tags": ["image-classification", "cswin", "mindspore"]}
    front |= {"datasets": ["imagenet-1k"]} if imagenet else {}
    if figures:
        dataset = ("imagenet-1k", "ImageNet-1K") if imagenet else ("image-folder", "the run's own images")
        metrics = [{"type": "accuracy", "name": f"top-{k}, %", "value": round(figures[f"top{k}"], 4)} for k in (1, 5)]
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"type": dataset[0], "name": dataset[1], "split": "validation"},
            "metrics": metrics,
        }
        front["model-index"] = [{"name": name, "results": [result]}]
    return front


def _page(name: str, record: CheckpointRecord, front: dict[str, Any], card: str | None, which: str) -> str:
    arch, layout = record.architecture, Layout.of(record.architecture)
    return render(
        "hub.md",
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True),
        name=name,
        card=card,
        which={"raw": "raw weights", "ema": "moving average (EMA) of the weights"}[which],
        arch=arch,
        arch_name=name_of(arch) or "CSWin Transformer",
        parameters=sum(map(layout.size, GROUPS)),
        conversions=record.provenance.get("conversions", []),
    )


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
