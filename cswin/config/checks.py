"""Rules between the keys of a configuration. The rules for single keys are in settings.py."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from cswin.config.runtime import Runtime
from cswin.config.settings import Augment, Settings, Stage
from cswin.convert.published import PREFIX, PUBLISHED
from cswin.data.sources.registry import INPUTS, SOURCES
from cswin.errors import UserError
from cswin.layout import IN_RUN

if TYPE_CHECKING:
    from cswin.config.resolve import StageConfig


def rule_problems(settings: Settings, stages: list[StageConfig]) -> list[str]:
    """A line for each violated rule: key, value and remedy.

    Args:
        settings: a configuration with its stages in order.
        stages: the same stages, resolved.
    """
    problems = _check_order(settings) + _check_schedules(stages) + _check_selection(settings, stages)
    problems += (
        _check_published(settings.published)
        + _check_data(settings)
        + _check_batch(settings.runtime, stages)
        + _check_nodes(settings.runtime)
    )
    for stage in stages:
        problems += _check_stage(stage)
    return list(dict.fromkeys(problems))


def _check_order(settings: Settings) -> list[str]:
    """Each stage begins where the previous one ends, and says what it takes from it."""
    problems = []
    for name, stage in settings.stages.items():
        if name in IN_RUN:
            problems.append(f"stages.{name}: the name is taken by the run's own files; choose another")
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
        if stage.carry is None:
            problems.append(f"stages.{name}.carry: missing; usual: weights; {Stage.model_fields['carry'].description}")
        if stage.carry == "weights" and stage.carry_weights is None:
            problems.append(
                f"stages.{name}.carry_weights: missing; usual: raw; {Stage.model_fields['carry_weights'].description}"
            )
        if stage.start_epoch != before.epochs:
            problems.append(
                f"stages.{name}.start_epoch: {stage.start_epoch} must be {before.epochs}, the end of {before_name}; "
                "otherwise epochs are repeated or left out"
            )
    return problems


def _check_schedules(stages: list[StageConfig]) -> list[str]:
    """The stages continue one schedule."""
    lengths = {stage.stage: stage.schedule.cosine_length(stage.epochs) for stage in stages}
    first = stages[0].stage
    return [
        f"stages.{name}: epochs - cool_length - tail_length - over_length leaves a cosine phase of {length} "
        f"epochs, but {first} has {lengths[first]}; the stages continue one schedule, so add the "
        "difference to epochs or take it from the phases"
        for name, length in lengths.items()
        if length != lengths[first]
    ]


def _check_selection(settings: Settings, stages: list[StageConfig]) -> list[str]:
    """The held-out part of the training set is the same in every stage, so no stage trains on images that another selects on."""
    first, images, problems = stages[0].evaluation, settings.data.expect_train, []
    for stage in stages[1:]:
        for key in ("select_on", "minival_images") if "minival" in (first.select_on, stage.evaluation.select_on) else ():
            mine, theirs = getattr(stage.evaluation, key), getattr(first, key)
            if mine != theirs:
                problems.append(
                    f"stages.{stage.stage}.evaluation.{key}: {mine} must be {theirs}, as in {stages[0].stage}: otherwise a "
                    "stage trains on images that another selects on"
                )
    if first.select_on == "minival" and images is not None and first.minival_images >= images:
        problems.append(
            f"evaluation.minival_images: {first.minival_images} must be less than the {images} training images "
            "(data.expect_train), of which they are held out"
        )
    return problems


def _check_published(name: str | None) -> list[str]:
    if name is None or name in PUBLISHED:
        return []
    return [
        f"pretrained: {PREFIX}{name}: no such weights are published; one of: {', '.join(PREFIX + known for known in PUBLISHED)}"
    ]


def _check_data(settings: Settings) -> list[str]:
    """The paths of the source are given, and no paths of other sources."""
    data, source, problems = settings.data, SOURCES[settings.data.source], []
    for key in INPUTS:
        value, wanted = getattr(data, key), key in source.inputs
        if wanted and value is None:
            problems.append(f"data.{key}: missing; source {data.source!r} needs its path")
        if value is not None and not wanted:
            problems.append(f"data.{key}: {value!r} has no effect with source {data.source!r}; remove it or change the source")
    if source.classes not in (None, data.classes):
        problems.append(f"data.classes: {data.classes} must be {source.classes} with source {data.source!r}")
    return problems


def _check_batch(run: Runtime, stages: list[StageConfig]) -> list[str]:
    """Devices, batch per device and accumulation give the global batch."""
    batches = {stage.optimizer.global_batch for stage in stages}
    if len(batches) > 1:
        return [
            f"optimizer.global_batch: {', '.join(map(str, sorted(batches)))} in different stages; runtime is the same in all "
            "stages, so give them one"
        ]
    wanted, product = batches.pop(), run.batch_size * run.devices * run.accumulation
    if wanted == product:
        return []
    return [
        f"optimizer.global_batch: {wanted} is not runtime.batch_size x devices x accumulation = "
        f"{run.batch_size} x {run.devices} x {run.accumulation} = {product}; {_batch_remedy(run, wanted)}"
    ]


def _batch_remedy(run: Runtime, wanted: int) -> str:
    """The keys that can be changed to give the global batch, with their values."""
    share, rest = divmod(wanted, run.devices)
    if rest:
        devices = [str(n) for n in range(run.nodes, wanted + 1, run.nodes) if wanted % n == 0]
        fewer_or_more = f"set runtime.devices to one of {', '.join(devices)}, or " if devices else ""
        return (
            f"no batch_size and no accumulation make {wanted} on {run.devices} devices: {fewer_or_more}change "
            f"optimizer.global_batch to a multiple of {run.devices} (another recipe: the learning rate is not scaled)"
        )
    batch = max(n for n in range(1, min(run.batch_size, share) + 1) if share % n == 0)
    return f"set runtime.batch_size to {batch} and runtime.accumulation to {share // batch}"


def _check_nodes(run: Runtime) -> list[str]:
    problems = []
    if run.devices % run.nodes:
        problems.append(f"runtime.nodes: {run.nodes} nodes cannot share {run.devices} devices equally; change one of the two")
    if run.host_file and run.nodes == 1:
        problems.append(f"runtime.host_file: {run.host_file!r} has no effect on one node; set runtime.nodes, or remove it")
    return problems


def _check_stage(config: StageConfig) -> list[str]:
    """Rules between the sections of one stage."""
    problems, schedule, augment = [], config.schedule, config.augment
    prefix = f"stages.{config.stage}"
    cosine = schedule.cosine_length(config.epochs)
    if cosine < max(1, schedule.warmup_length):
        problems.append(
            f"{prefix}.epochs: {config.epochs} - cool {schedule.cool_length} - tail {schedule.tail_length} - over "
            f"{schedule.over_length} leaves {cosine} epochs for warmup ({schedule.warmup_length}) and cosine; raise "
            "epochs or shorten a phase"
        )
    try:
        _ = config.architecture
    except UserError as error:
        problems.append(f"model.{error}")
    if config.optimizer.loss_scale >= config.optimizer.loss_scale_max:
        problems.append(
            f"optimizer.loss_scale: {config.optimizer.loss_scale:g} must be less than loss_scale_max "
            f"{config.optimizer.loss_scale_max:g}, at which training stops"
        )
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
    from cswin.data.augment.randaugment import RandAugment

    try:
        RandAugment.parse(augment.rand_augment, mean_fill=(0, 0, 0))
    except UserError as error:
        return [f"augment.rand_augment: {error}"]
    return []
