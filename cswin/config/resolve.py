"""Makes one complete, checked configuration per stage from a configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cswin.config.checks import rule_problems
from cswin.config.files import read_yaml
from cswin.config.problems import settings_problems, validated
from cswin.config.settings import (
    STAGE_SECTIONS,
    Augment,
    Evaluation,
    Model,
    Optimizer,
    Runtime,
    Schedule,
    Section,
    Settings,
    Stage,
)
from cswin.errors import UserError
from cswin.model.variants import Architecture, variant


class StageConfig(Section):
    """All settings that determine the result of a stage. Settings that only change its speed are in `Runtime`."""

    run: str
    stage: str
    previous: str | None  # name of the previous stage; None in the first one
    seed: int
    num_classes: int
    pretrained: str | None
    carry: str
    carry_weights: str
    start_epoch: int
    epochs: int
    model: Model
    augment: Augment
    optimizer: Optimizer
    schedule: Schedule
    evaluation: Evaluation

    @property
    def architecture(self) -> Architecture:
        """The network that the stage trains."""
        return architecture(self.model, self.num_classes)

    @property
    def image_size(self) -> int:
        """Side of the input image in pixels."""
        return self.architecture.image_size


class Expectations(Section):
    """The figures with which the results of a run are compared."""

    run: str
    paper_top1: float | None
    stages: dict[str, float | None]  # reported top-1 by stage, in order


def expectations(settings: Settings, reported: bool = True) -> Expectations:
    """The stages of the run and their reported figures; with `reported` False without these figures."""
    stages = {name: stage.reported_top1 if reported else None for name, stage in settings.stages.items()}
    return Expectations(run=settings.run, paper_top1=settings.paper_top1 if reported else None, stages=stages)


def architecture(model: Model, num_classes: int) -> Architecture:
    """The architecture of a model section, with the changes of the section."""
    changes = {
        "image_size": model.image_size,
        "in_channels": model.in_channels,
        "split_size": model.split_size,
        "num_heads": model.num_heads,
    }
    return variant(model.arch).replace(num_classes=num_classes, **{k: v for k, v in changes.items() if v is not None})


def parse_settings(values: Any) -> Settings:
    """Typed settings from plain values; all rules are checked.

    Raises:
        UserError: one line per problem: key, value and remedy.
    """
    if not isinstance(values, dict):
        raise UserError("the configuration is not a mapping of keys to values")
    if problems := settings_problems(values):
        raise UserError("\n".join(problems))
    settings = Settings.model_validate(values)
    # In the order of the schedule: Snakemake puts stages from the command line first.
    in_order = sorted(settings.stages.items(), key=lambda item: item[1].start_epoch)
    settings = settings.model_copy(update={"stages": dict(in_order)})
    if problems := rule_problems(settings, [resolve_stage(settings, name) for name in settings.stages]):
        raise UserError("\n".join(problems))
    return settings


def load_settings(path: Path) -> Settings:
    """`parse_settings` of a YAML file."""
    values = read_yaml(path)
    try:
        return parse_settings(values)
    except UserError as error:
        raise UserError(f"{path}:\n{error}") from None


def resolve_stage(settings: Settings, name: str) -> StageConfig:
    """The complete configuration of one stage: the common sections, changed by the stage's own keys."""
    if name not in settings.stages:
        raise UserError(f"stages: there is no stage {name!r}; one of: {', '.join(settings.stages)}")
    stage, names = settings.stages[name], list(settings.stages)
    position = names.index(name)
    sections = {key: _merged(settings, stage, name, key) for key in STAGE_SECTIONS}
    return StageConfig(
        run=settings.run,
        stage=name,
        previous=names[position - 1] if position else None,
        seed=settings.seed,
        num_classes=settings.data.classes,
        pretrained=None if position else settings.pretrained,
        carry=stage.carry or "weights",  # no effect in the first stage, the only one in which it may be missing
        carry_weights=stage.carry_weights or "raw",  # no effect with carry: all
        start_epoch=stage.start_epoch,
        epochs=stage.epochs,
        **sections,
    )


def dump(section: Section) -> str:
    """YAML text of a section; equal values give equal text."""
    return yaml.safe_dump(section.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_stage(path: Path) -> StageConfig:
    """The resolved configuration in a file."""
    return _load_section(StageConfig, path)


def load_runtime(path: Path) -> Runtime:
    """The resolved runtime section in a file."""
    return _load_section(Runtime, path)


def load_expectations(path: Path) -> Expectations:
    """The expectations in a file."""
    return _load_section(Expectations, path)


def _load_section(kind: type[Section], path: Path):
    if not Path(path).exists():
        raise UserError(f"{path}: No such file or directory; `snakemake` writes it from the configuration")
    return validated(kind, read_yaml(path), f"{path}: ")


def _merged(settings: Settings, stage: Stage, name: str, key: str) -> Section:
    kind, common, changes = STAGE_SECTIONS[key], getattr(settings, key), getattr(stage, key)
    return validated(kind, {**common.model_dump(), **changes}, f"stages.{name}.{key}.")
