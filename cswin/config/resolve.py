"""From a configuration file to one complete, checked configuration per stage."""

from __future__ import annotations

import difflib
import itertools
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cswin.config.inputs import SOURCE_KEYS, SOURCES
from cswin.config.settings import Augment, Evaluation, Model, Optimizer, Runtime, Schedule, Section, Settings, Stage
from cswin.errors import UserError
from cswin.model.variants import Architecture, variant

STAGE_SECTIONS = {"schedule": Schedule, "optimizer": Optimizer, "augment": Augment, "model": Model, "evaluation": Evaluation}


class StageConfig(Section):
    """Everything that decides what one stage computes. What only decides how fast is in `Runtime`."""

    run: str
    stage: str
    previous: str | None  # the stage before; None: the first
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
        """Side of the input in pixels."""
        return self.architecture.image_size


class Expectations(Section):
    """What a run's results are compared with."""

    run: str
    paper_top1: float | None
    stages: dict[str, float | None]  # reported top-1 by stage, in order


def expectations(settings: Settings, reported: bool = True) -> Expectations:
    """The run's stages and what was reported for them; with `reported` False the stages alone."""
    stages = {name: stage.reported_top1 if reported else None for name, stage in settings.stages.items()}
    return Expectations(run=settings.run, paper_top1=settings.paper_top1 if reported else None, stages=stages)


def architecture(model: Model, num_classes: int) -> Architecture:
    """The architecture of a model section, with what the section changes."""
    changes = {
        "image_size": model.image_size,
        "in_channels": model.in_channels,
        "split_size": model.split_size,
        "num_heads": model.num_heads,
    }
    return variant(model.arch).replace(num_classes=num_classes, **{k: v for k, v in changes.items() if v is not None})


def cosine_length(schedule: Schedule, epochs: int) -> int:
    """Epochs of the cosine phase, warm-up included."""
    return epochs - schedule.cool_length - schedule.tail_length - schedule.over_length


def parse_settings(values: Any) -> Settings:
    """Typed settings from plain values, every rule checked.

    Raises:
        UserError: one line per problem: key, value and remedy.
    """
    if not isinstance(values, dict):
        raise UserError("the configuration is not a mapping of keys to values")
    settings = _validate(Settings, values, "")
    # By their place in the schedule: Snakemake puts what comes from the command line first.
    in_order = sorted(settings.stages.items(), key=lambda item: item[1].start_epoch)
    settings = settings.model_copy(update={"stages": dict(in_order)})
    problems = _check_stages(settings) + _check_data(settings) + _check_runtime(settings)
    for name in settings.stages:
        problems += _check_stage(resolve_stage(settings, name))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return settings


def load_settings(path: Path) -> Settings:
    """`parse_settings` of a YAML file."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    try:
        return parse_settings(values)
    except UserError as error:
        raise UserError(f"{path}:\n{error}") from None


def resolve_stage(settings: Settings, name: str) -> StageConfig:
    """The complete configuration of one stage: the stage's own keys laid over the common ones."""
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
        carry=stage.carry,
        carry_weights=stage.carry_weights,
        start_epoch=stage.start_epoch,
        epochs=stage.epochs,
        **sections,
    )


def dump(section: Section) -> str:
    """YAML text of a section; the same values always give the same text."""
    return yaml.safe_dump(section.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_stage(path: Path) -> StageConfig:
    """A stage's resolved configuration file."""
    return _load_section(StageConfig, path)


def load_runtime(path: Path) -> Runtime:
    """A resolved runtime file."""
    return _load_section(Runtime, path)


def load_expectations(path: Path) -> Expectations:
    """A resolved file of expectations."""
    return _load_section(Expectations, path)


def _load_section(kind: type[Section], path: Path):
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; `snakemake` writes it from the configuration") from None
    return _validate(kind, values, f"{path}: ")


def _merged(settings: Settings, stage: Stage, name: str, key: str) -> Section:
    kind, common, changes = STAGE_SECTIONS[key], getattr(settings, key), getattr(stage, key)
    return _validate(kind, {**common.model_dump(), **changes}, f"stages.{name}.{key}.")


def _validate(kind: type[Section], values: Any, prefix: str):
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(_explain(kind, problem, prefix) for problem in error.errors())) from None


def _explain(kind: type[Section], problem: dict, prefix: str) -> str:
    """One line for one problem: key, value, what is wrong, remedy."""
    place = [part for part in problem["loc"] if part != "[key]"]
    key, value = prefix + ".".join(map(str, place)), problem["input"]
    owner, field = _field(kind, place)
    if problem["type"] == "extra_forbidden":
        known = list(owner.model_fields) if owner else []
        close = difflib.get_close_matches(str(place[-1]), known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return f"{key}: unknown key (value {value!r}); {hint}"
    if problem["type"] == "missing":
        return f"{key}: missing; {field.description if field else 'it must be given'}"
    remedy = (field.json_schema_extra or {}).get("remedy") if field else None
    if remedy is None and isinstance(value, str) and _is_number(value):
        remedy = f"YAML reads {value} as text; write it with a decimal point and no quotes, as 1.0e-3"
    return f"{key}: {value!r} is refused: {problem['msg'][0].lower() + problem['msg'][1:]}" + (f"; {remedy}" if remedy else "")


def _field(kind: type[Section] | None, place: list):
    """The section that owns a key, and the key's definition, as far as the path can be followed."""
    owner, field = kind, None
    for depth, part in enumerate(place):
        field = owner.model_fields.get(part) if owner else None
        if depth + 1 < len(place):
            if part == "stages":
                owner = Section  # the stage's name comes next
            elif owner is Section:
                owner = Stage
            else:
                kinds = getattr(field, "annotation", None)
                owner = kinds if isinstance(kinds, type) and issubclass(kinds, Section) else None
    return owner, field


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_stages(settings: Settings) -> list[str]:
    """Stages follow each other and continue one schedule."""
    problems = []
    for name, stage in settings.stages.items():
        if stage.epochs <= stage.start_epoch:
            problems.append(
                f"stages.{name}.epochs: {stage.epochs} must be above start_epoch {stage.start_epoch}; it is the "
                "stage's end on the whole schedule, not its length"
            )
    first_name, first = next(iter(settings.stages.items()))
    if first.start_epoch != 0:
        problems.append(
            f"stages.{first_name}.start_epoch: {first.start_epoch} must be 0 in the first stage; to start from a "
            "checkpoint use `pretrained`"
        )
    for (before_name, before), (name, stage) in itertools.pairwise(settings.stages.items()):
        if stage.start_epoch != before.epochs:
            problems.append(
                f"stages.{name}.start_epoch: {stage.start_epoch} must be {before.epochs}, the end of {before_name}; "
                "otherwise epochs are repeated or left out"
            )
    lengths = {n: cosine_length(resolve_stage(settings, n).schedule, s.epochs) for n, s in settings.stages.items()}
    for name, length in lengths.items():
        if length != lengths[first_name]:
            problems.append(
                f"stages.{name}: epochs - cool_length - tail_length - over_length leaves a cosine phase of {length} "
                f"epochs, but {first_name} has {lengths[first_name]}; the stages continue one schedule, so add the "
                "difference to epochs or take it from the phases"
            )
    return problems + _check_selection(settings)


def _check_selection(settings: Settings) -> list[str]:
    """The part of the training set that is held out is one part, in every stage: no stage trains on what another selects on."""
    stages, images = {name: resolve_stage(settings, name).evaluation for name in settings.stages}, settings.data.expect_train
    (first_name, first), *others = stages.items()
    problems = []
    for name, evaluation in others:
        for key in ("select_on", "minival_images") if "minival" in (first.select_on, evaluation.select_on) else ():
            mine, theirs = getattr(evaluation, key), getattr(first, key)
            if mine != theirs:
                problems.append(
                    f"stages.{name}.evaluation.{key}: {mine} must be {theirs}, as in {first_name}: otherwise a stage trains on "
                    "images that another selects on"
                )
    if first.select_on == "minival" and images is not None and first.minival_images >= images:
        problems.append(
            f"evaluation.minival_images: {first.minival_images} must be less than the {images} training images "
            "(data.expect_train), of which they are held out"
        )
    return problems


def _check_data(settings: Settings) -> list[str]:
    """Each source has its paths, and no other source's."""
    data, problems = settings.data, []
    for key in SOURCE_KEYS:
        value, wanted = getattr(data, key), key in SOURCES[data.source]
        if wanted and value is None:
            problems.append(f"data.{key}: missing; source {data.source!r} needs its path")
        if value is not None and not wanted:
            problems.append(f"data.{key}: {value!r} has no effect with source {data.source!r}; remove it or change the source")
    if data.source == "digits" and data.classes != 10:
        problems.append(f"data.classes: {data.classes} must be 10 with source 'digits'")
    return problems


def _check_runtime(settings: Settings) -> list[str]:
    run = settings.runtime
    problems, product = [], run.batch_size * run.devices * run.accumulation
    for name in settings.stages:
        wanted = resolve_stage(settings, name).optimizer.global_batch
        if wanted != product:
            problems.append(
                f"optimizer.global_batch: {wanted} is not runtime.batch_size x devices x accumulation = "
                f"{run.batch_size} x {run.devices} x {run.accumulation} = {product}; change accumulation or "
                "batch_size (the learning rate is never scaled in silence)"
            )
    if run.devices % run.nodes:
        problems.append(f"runtime.nodes: {run.nodes} nodes cannot share {run.devices} devices equally; change one of the two")
    if run.host_file and run.nodes == 1:
        problems.append(f"runtime.host_file: {run.host_file!r} has no effect on one node; set runtime.nodes, or remove it")
    return problems


def _check_stage(config: StageConfig) -> list[str]:
    """Rules across the sections of one stage."""
    problems, schedule, augment = [], config.schedule, config.augment
    prefix = f"stages.{config.stage}"
    cosine = cosine_length(schedule, config.epochs)
    if cosine < max(1, schedule.warmup_length):
        problems.append(
            f"{prefix}.epochs: {config.epochs} - cool {schedule.cool_length} - tail {schedule.tail_length} - over "
            f"{schedule.over_length} leaves {cosine} epochs for warm-up ({schedule.warmup_length}) and cosine; raise "
            "epochs or shorten a phase"
        )
    try:
        _ = config.architecture
    except UserError as error:
        problems.append(f"model.{error}")
    if augment.mixup or augment.cutmix:
        group, batch = augment.mixup_group, config.optimizer.global_batch
        if group % 2 or batch % group:
            problems.append(
                f"augment.mixup_group: {group} must be even and divide optimizer.global_batch {batch}; each image is "
                "mixed with its partner in the group"
            )
    for key in ("scale", "ratio"):
        low, high = getattr(augment, key)
        if not 0 < low <= high or (key == "scale" and high > 1):
            problems.append(
                f"augment.{key}: [{low}, {high}] must be two positive numbers in ascending order"
                + (" up to 1" if key == "scale" else "")
            )
    if min(augment.std) <= 0:
        problems.append(f"augment.std: {augment.std} must be positive")
    if augment.rand_augment:
        problems += _check_rand_augment(augment)
    return problems


def _check_rand_augment(augment: Augment) -> list[str]:
    from cswin.data.randaugment import RandAugment

    try:
        RandAugment.parse(augment.rand_augment, mean_fill=(0, 0, 0))
    except UserError as error:
        return [f"augment.rand_augment: {error}"]
    return []
