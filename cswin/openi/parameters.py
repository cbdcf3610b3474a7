"""The job's parameters: the platform's, the report's, and any key of the configuration.

A parameter of the report (`train.py`, `train_multi.py`, `eval.py` and their YAML) is understood where it still means the same, and
refused with the new way to say it where it does not. Everything else is a key of the configuration: `--schedule.base_lr=0.0005`.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cswin.config.files import read_yaml
from cswin.config.resolve import parse_settings
from cswin.config.settings import Runtime, Settings
from cswin.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "config" / "imagenet"
# --arch -> configuration. The report's own small model has stripes of 2 in the first stage.
ARCHITECTURES = {
    "cswin_64_24322_small_224": "report_small_224",
    "cswin_64_12211_tiny_224": "paper_tiny_224",
    "cswin_96_24322_base_224": "paper_base_224",
    "cswin_96_24322_base_384": "paper_base_384",
    "cswin_144_24322_large_224": "paper_large_224",
    "cswin_144_24322_large_384": "paper_large_384",
}
# The report's name -> the key here; the meaning is the same.
RENAMED = {
    "mix_up": "augment.mixup",
    "cutmix": "augment.cutmix",
    "mixup_prob": "augment.mixup_prob",
    "switch_prob": "augment.switch_prob",
    "mixup_mode": "augment.mixup_mode",
    "auto_augment": "augment.rand_augment",
    "interpolation": "augment.interpolation",
    "re_prob": "augment.erase_prob",
    "re_mode": "augment.erase_mode",
    "re_count": "augment.erase_count",
    "label_smoothing": "augment.label_smoothing",
    "num_classes": "data.classes",
    "crop_ratio": "evaluation.crop_ratio",
    "base_lr": "schedule.base_lr",
    "min_lr": "schedule.min_lr",
    "warmup_length": "schedule.warmup_length",
    "warmup_lr": "schedule.warmup_lr",
    "cool_lr": "schedule.cool_lr",
    "tail_lr": "schedule.tail_lr",
    "over_lr": "schedule.over_lr",
    "amp_level": "optimizer.amp_level",
    "clip_global_norm_value": "optimizer.clip_norm",
    "ema_decay": "optimizer.ema_decay",
    "loss_scale": "optimizer.loss_scale",
    "weight_decay": "optimizer.weight_decay",
    "drop_path_rate": "model.drop_path",
    "split_size": "model.split_size",
    "num_heads": "model.num_heads",
    "num_parallel_workers": "runtime.workers",
    "device_target": "runtime.device_target",
    "seed": "seed",
    "run": "run",
}
_STAGES = "stages follow each other by themselves and belong to a stage: --stages.<stage>."
_FIXED = "leave it out, "
_ARCH = "it belongs to the architecture: --arch, or --model.arch"
# The report's name -> why it is not a parameter here, and what to say instead.
REFUSED = {
    "start_epoch": "a stage starts by itself from the one before, and a job with the same train_url goes on where the last one "
    "stopped; the first epoch of a stage is --stages.<stage>.start_epoch (320 and 380 for the report's 319 and 379, which repeat "
    "an epoch each); to start from a checkpoint give --pretrained without start_epoch",
    "epochs": f"{_STAGES}epochs",
    "cool_length": f"{_STAGES}schedule.cool_length",
    "tail_length": f"{_STAGES}schedule.tail_length",
    "over_length": f"{_STAGES}schedule.over_length",
    "batch_size": "it changes the batch of a step as well: --runtime.batch_size for a device, --optimizer.global_batch for all",
    "beta": "--optimizer.beta1 and --optimizer.beta2",
    "set": f"{_FIXED}data_url says which images; names and numbers are checked by --data.expect_train and --data.expect_val",
    "optimizer": f"{_FIXED}it is always AdamW",
    "lr_scheduler": f"{_FIXED}it is always warm-up, cosine and constant phases",
    "is_dynamic_loss_scale": f"{_FIXED}the loss scale is always dynamic; --optimizer.loss_scale is its start",
    "use_global_norm": f"{_FIXED}clipping is by the global norm; --optimizer.clip_norm=null turns it off",
    "enable_ema": f"{_FIXED}the moving average is always kept and always evaluated beside the raw weights",
    "keep_bn_fp32": f"{_FIXED}this network has no batch normalisation",
    "momentum": f"{_FIXED}AdamW has none; --optimizer.beta1 is the nearest",
    "patch_size": _ARCH,
    "embed_dim": _ARCH,
    "depth": _ARCH,
    "mlp_ratio": _ARCH,
    "device_id": f"{_FIXED}the platform says which devices the job has; to evaluate on one: cswin evaluate --device-id",
}


@dataclass(frozen=True)
class Parameters:
    """A job.

    Attributes:
        data: (URL, name) of what holds the images.
        models: (URL, name) of what holds checkpoints.
        pretrained: checkpoint from which the first stage starts: a path, a URL, or a name in `data` or `models`.
        train_url: where results and resume state go.
        values: the configuration, as in its file, with everything that was overridden.
        work: folder on a local disk in which the workflow runs.
        copy_minutes: time between two copies to train_url.
    """

    data: list[tuple[str, str]]
    models: list[tuple[str, str]]
    pretrained: str | None
    train_url: str
    values: dict[str, Any]
    work: Path
    copy_minutes: float


def parse_parameters(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Parameters:
    """Parameters from the command line and, for data_url and train_url, the environment.

    Raises:
        UserError: for a parameter that is unknown or no longer means what it did, with the new way to say it.
    """
    known, rest = build_parser().parse_known_args(arguments)
    if not known.run_openi:
        raise UserError(
            "run_openi: False is refused: this is the start file for the platform; elsewhere run snakemake (README.md)"
        )
    train_url = known.train_url or environment.get("train_url")
    if not train_url:
        raise UserError(
            "train_url: missing; give --train_url or the environment variable train_url: results and resume state go there"
        )
    data = _listed(known.multi_data_url, "multi_data_url", "dataset_url", "dataset_name")
    single = known.data_url or environment.get("data_url")
    if not data and single:
        data = [(single, _name(single))]
    models = _listed(known.pretrain_url, "pretrain_url", "model_url", "model_name")
    if known.ckpt_url and known.ckpt_url != "[]":
        models.append((known.ckpt_url, _name(known.ckpt_url)))
    values = _configuration(known, _split(rest))
    work = Path(known.work_dir or ("/cache/cswin" if Path("/cache").is_dir() else "openi-work")).resolve()
    if known.copy_minutes <= 0:
        raise UserError(f"copy_minutes: {known.copy_minutes} must be positive")
    return Parameters(data, models, known.pretrained, train_url, values, work, known.copy_minutes)


def build_parser() -> argparse.ArgumentParser:
    """What has a meaning of its own; everything else is a key of the configuration."""
    parser = argparse.ArgumentParser(
        prog="python -m cswin.openi",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data_url", metavar="URL", help="folder or file with the archive (default: the variable data_url)")
    parser.add_argument(
        "--train_url", metavar="URL", help="where results go, and what a restart continues (default: the variable)"
    )
    parser.add_argument("--multi_data_url", metavar="JSON", help="several datasets, as the platform writes them")
    parser.add_argument("--ckpt_url", metavar="URL", help="a model chosen on the platform")
    parser.add_argument("--pretrain_url", metavar="JSON", help="several models, as the platform writes them")
    parser.add_argument("--arch", metavar="NAME", help=f"which configuration: {', '.join(ARCHITECTURES)} (default: the first)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a configuration file instead of --arch")
    parser.add_argument(
        "--pretrained", metavar="NAME", help="checkpoint to start the first stage from: a name in the data, or a URL"
    )
    parser.add_argument("--run_openi", type=_truth, default=True, metavar="True", help="always True here")
    parser.add_argument("--device_num", type=int, metavar="N", help="devices; the batch of a step stays, accumulation follows")
    parser.add_argument(
        "--work_dir", metavar="FOLDER", help="on a fast local disk (default: /cache/cswin where there is /cache)"
    )
    parser.add_argument(
        "--copy_minutes", type=float, default=15.0, metavar="M", help="between two copies to train_url (default: %(default)s)"
    )
    return parser


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is not True or False")
    return text.lower() in ("true", "1")


def _split(rest: Sequence[str]) -> list[tuple[str, str]]:
    """(name, value) of --name=value and --name value."""
    pairs, words = [], list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UserError(f"{word!r}: is no parameter; they are written --name=value")
        name, separator, value = word[2:].partition("=")
        if not separator:
            if not words or words[0].startswith("--"):
                raise UserError(f"{name}: has no value; write --{name}=value")
            value = words.pop(0)
        pairs.append((name, value))
    return pairs


def _configuration(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> dict[str, Any]:
    """The values of the configuration file with all overrides laid over them; the whole is checked once the data are known."""
    if known.arch and known.arch not in ARCHITECTURES and not known.config:
        raise UserError(
            f"arch: {known.arch!r} is not known; one of {', '.join(ARCHITECTURES)}, or --config=FILE with model.arch"
        )
    file = known.config or CONFIGS / f"{ARCHITECTURES[known.arch or next(iter(ARCHITECTURES))]}.yaml"
    values = read_yaml(file)
    if not isinstance(values, dict):
        raise UserError(f"{file}: is no mapping of keys to values")
    if known.config and known.arch:
        _set(values, "model.arch", known.arch)
    for name, text in overrides:
        _set(values, _key(name, text), yaml.safe_load(text))
    if known.device_num is not None:
        _set_devices(values, known.device_num)
    return values


def _key(name: str, text: str) -> str:
    if name in REFUSED:
        raise UserError(f"{name}: {text!r} is refused: {REFUSED[name]}")
    if name in RENAMED:
        return RENAMED[name]
    if "." in name and name.split(".")[0] in Settings.model_fields:
        return name
    known = [*RENAMED, *REFUSED, *(a.option_strings[0][2:] for a in build_parser()._actions)]
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UserError(
        f"{name}: unknown parameter (value {text!r}); {hint}Keys of the configuration are written --section.key=value"
    )


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"{key}: {section!r} holds no keys")
        values = inner
    values[last] = value


def _set_devices(values: dict[str, Any], devices: int) -> None:
    """As many devices, with the batch of a step as it was: the results stay the same, the accumulation follows."""
    if devices < 1:
        raise UserError(f"device_num: {devices} must be 1 or more")
    _set(values, "runtime.accumulation", 1)
    _set(values, "runtime.devices", devices)
    optimizer, batch_size = values.get("optimizer"), values["runtime"].get("batch_size", Runtime().batch_size)
    batch = optimizer.get("global_batch") if isinstance(optimizer, dict) else None
    if not all(isinstance(size, int) and size > 0 for size in (batch, batch_size)):
        return  # the check of the whole configuration says so
    if batch % (per_pass := batch_size * devices):
        raise UserError(
            f"device_num: {devices} devices with {batch_size} images each make {per_pass}, which does not divide "
            f"optimizer.global_batch {batch}; change --runtime.batch_size (speed) or --optimizer.global_batch (results)"
        )
    values["runtime"]["accumulation"] = batch // per_pass


def check(values: dict[str, Any]) -> Settings:
    """Every rule of the configuration."""
    return parse_settings(values)


def _listed(text: str | None, name: str, url_key: str, name_key: str) -> list[tuple[str, str]]:
    """(URL, name) from the platform's JSON list."""
    if not text:
        return []
    try:
        return [(item[url_key], item.get(name_key) or _name(item[url_key])) for item in json.loads(text)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{name}: {text!r} is not a JSON list of {url_key} and {name_key} ({error})") from error


def _name(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]
