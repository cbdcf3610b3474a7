"""The job's parameters: those of the platform, those of the report, and all keys of the configuration.

A parameter of the report is accepted if it still has the same meaning; otherwise the error names the replacement (report.yaml). All
other parameters are keys of the configuration: `--schedule.base_lr=0.0005`.
"""

from __future__ import annotations

import argparse
import contextlib
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
from cswin.config.runtime import Runtime
from cswin.config.settings import Settings
from cswin.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
_REPORT = yaml.safe_load(Path(__file__).with_name("report.yaml").read_text(encoding="utf-8"))
ARCHITECTURES, RENAMED, REFUSED = _REPORT["architectures"], _REPORT["renamed"], _REPORT["refused"]
# The parameters that are not keys of the configuration.
OPTIONS: dict[str, dict[str, Any]] = {
    "data_url": {"metavar": "URL", "help": "the archive, or a folder with it (default: the environment variable data_url)"},
    "train_url": {"metavar": "URL", "help": "receives the results; the next job continues from it (default: the variable)"},
    "multi_data_url": {"metavar": "JSON", "help": "several datasets, in the platform's format"},
    "ckpt_url": {"metavar": "URL", "help": "a model selected on the platform"},
    "pretrain_url": {"metavar": "JSON", "help": "several models, in the platform's format"},
    "arch": {"metavar": "NAME", "help": f"selects the configuration: {', '.join(ARCHITECTURES)} (default: the first)"},
    "config": {"type": Path, "metavar": "FILE", "help": "a configuration file instead of --arch"},
    "pretrained": {"metavar": "NAME", "help": "checkpoint from which the first stage starts: a name in the data, or a URL"},
    "run_openi": {"default": "True", "choices": ("True", "true", "1", "False", "false", "0"), "help": "always True here"},
    "device_num": {"type": int, "metavar": "N", "help": "devices; accumulation is adjusted so that the global batch stays"},
    "work_dir": {"metavar": "FOLDER", "help": "folder on a fast local disk (default: /cache/cswin if /cache exists)"},
    "copy_minutes": {"type": float, "default": 15.0, "metavar": "M",
                     "help": "minutes between two copies to train_url (default: %(default)s)"},
}  # fmt: skip


@dataclass(frozen=True)
class Parameters:
    """The parameters of a job.

    Attributes:
        data: (URL, name) of files or folders with images.
        models: (URL, name) of files or folders with checkpoints.
        pretrained: checkpoint from which the first stage starts: a path, a URL, or a name in `data` or `models`.
        train_url: URL for results and state.
        values: values of the configuration file, with all overrides.
        work: folder on a local disk in which the workflow runs.
        copy_minutes: minutes between two copies to train_url.
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
        UserError: for an unknown parameter, for one whose meaning has changed (with its replacement), and for errors in the resulting
            configuration.
    """
    parser = argparse.ArgumentParser(prog="python -m cswin.openi", description=__doc__, allow_abbrev=False)
    for name, option in OPTIONS.items():
        parser.add_argument(f"--{name}", **option)
    known, rest = parser.parse_known_args(arguments)
    if known.run_openi in ("False", "false", "0"):
        raise UserError(
            "run_openi: False is refused: this is the start file for the platform; elsewhere run snakemake (README.md)"
        )
    train_url = known.train_url or environment.get("train_url")
    if not train_url:
        raise UserError(
            "train_url: missing; give --train_url or the environment variable train_url: the URL for results and state"
        )
    if known.copy_minutes <= 0:
        raise UserError(f"copy_minutes: {known.copy_minutes} must be positive")
    data = _listed(known.multi_data_url, "multi_data_url", "dataset_url", "dataset_name")
    if not data and (single := known.data_url or environment.get("data_url")):
        data = [(single, _name(single))]
    models = _listed(known.pretrain_url, "pretrain_url", "model_url", "model_name")
    if known.ckpt_url and known.ckpt_url != "[]":
        models.append((known.ckpt_url, _name(known.ckpt_url)))
    work = Path(known.work_dir or ("/cache/cswin" if Path("/cache").is_dir() else "openi-work")).resolve()
    return Parameters(data, models, known.pretrained, train_url, _configuration(known, rest), work, known.copy_minutes)


def _configuration(known: argparse.Namespace, rest: list[str]) -> dict[str, Any]:
    """The values of the configuration file with all overrides, checked. The paths of the data are set later."""
    if known.arch and known.arch not in ARCHITECTURES and not known.config:
        raise UserError(
            f"arch: {known.arch!r} is not known; one of {', '.join(ARCHITECTURES)}, or --config=FILE with model.arch"
        )
    name = ARCHITECTURES.get(known.arch, next(iter(ARCHITECTURES.values())))
    file = known.config or ROOT / "config" / "imagenet" / f"{name}.yaml"
    values = read_yaml(file)
    if known.config and known.arch:
        _set(values, "model.arch", known.arch)
    while rest:
        name, separator, value = rest.pop(0).partition("=")
        if not name.startswith("--"):
            raise UserError(f"{name!r}: is not a parameter; parameters are written --name=value")
        if not separator:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"{name[2:]}: has no value; write {name}=value")
            value = rest.pop(0)
        _set(values, _key(name[2:], value), yaml.safe_load(value))
    if known.device_num is not None:
        _set(values, "runtime.devices", known.device_num)
        with contextlib.suppress(LookupError, TypeError, ZeroDivisionError):  # parse_settings reports these
            per_pass = known.device_num * values["runtime"].get("batch_size", Runtime().batch_size)
            values["runtime"]["accumulation"] = values["optimizer"]["global_batch"] // per_pass
    parse_settings(values)
    return values


def _key(name: str, text: str) -> str:
    if name in REFUSED:
        raise UserError(f"{name}: {text!r} is refused: {REFUSED[name]}")
    if name in RENAMED:
        return RENAMED[name]
    if "." in name and name.split(".")[0] in Settings.model_fields:
        return name
    close = difflib.get_close_matches(name, [*RENAMED, *REFUSED, *OPTIONS], 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UserError(
        f"{name}: unknown parameter (value {text!r}); {hint}Keys of the configuration are written --section.key=value"
    )


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"{key}: {section!r} holds no keys")
    values[last] = value


def _listed(text: str | None, name: str, url_key: str, name_key: str) -> list[tuple[str, str]]:
    """(URL, name) from the platform's JSON list."""
    try:
        return [(item[url_key], item.get(name_key) or _name(item[url_key])) for item in json.loads(text or "[]")]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{name}: {text!r} is not a JSON list of {url_key} and {name_key} ({error})") from error


def _name(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]
