"""Estimates the cost of a configuration: steps, files, memory, hours. It needs no MindSpore.

Sizes follow from the number of parameters, at 4 bytes each. A checkpoint contains the weights and their moving average. A state
contains the weights, AdamW's two moments, the moving average, and weights and moving average of the best epoch. The memory per
device is that of `cswin.profile`, a lower bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from cswin.config.data import Data
from cswin.config.resolve import StageConfig, resolve_stage
from cswin.config.runtime import Runtime
from cswin.config.settings import Settings
from cswin.data.loader.batches import training_positions
from cswin.data.store.manifest import load_summary
from cswin.errors import UserError
from cswin.predictions import WEIGHT_SETS
from cswin.profile import COPIES_OF_WEIGHTS, FLOAT32, profile
from cswin.progress import size_text
from cswin.report.tables import text_table

CHECKPOINT_COPIES = 2  # weights, EMA
STATE_COPIES = 6  # weights, two moments, EMA; weights and EMA of the best epoch
HISTORY_ROW = 211  # bytes per step, mean of a run on the digits
BLOCK = 4096  # bytes of a file system's block; half a block is lost per file
IMAGENET_BYTES = 154e9 / 1_331_167  # per image, if the size is unknown


@dataclass(frozen=True)
class Images:
    """Number of images and their total size, with the origins of these figures."""

    train: int
    val: int
    bytes: float
    counted_by: str
    weighed_by: str


@dataclass(frozen=True)
class StageEstimate:
    """The cost of a stage.

    Attributes:
        name: of the stage.
        first_epoch, end_epoch: on the whole schedule.
        steps: optimizer steps.
        trained, validated: images that go through training steps and through validation (raw and EMA weights).
        macs: multiply-accumulates of the forward pass of one image.
        checkpoint, state: bytes of one file.
        disk: bytes in the stage's folder at its end, at most; one state more while it runs.
        memory: bytes on one device, at least.
    """

    name: str
    first_epoch: int
    end_epoch: int
    steps: int
    trained: int
    validated: int
    macs: int
    checkpoint: int
    state: int
    disk: int
    memory: int

    @property
    def gflop(self) -> float:
        """Floating-point operations of training and validation, in 10^9; a training step costs three forward passes."""
        return 2e-9 * self.macs * (3 * self.trained + self.validated)

    def hours(self, images_per_s: float) -> float:
        """Hours of training at a rate over all devices, without validation."""
        return self.trained / images_per_s / 3600


def count_images(data: Data) -> Images:
    """The number of images according to the manifest or, if there is none, the configuration.

    Raises:
        UserError: if both are missing.
    """
    manifest = data.layout.manifest
    if manifest.is_file():
        splits = load_summary(manifest).splits
        size = sum(split.bytes for split in splits.values())
        return Images(splits["train"].images, splits["val"].images, size, str(manifest), str(manifest))
    if data.expect_train is None or data.expect_val is None:
        raise UserError(
            f"data.expect_train, data.expect_val: the number of images is unknown until {manifest} exists; set both keys, or make "
            "the manifest: snakemake --until manifest"
        )
    size, weighed_by = _archives_size(data, data.expect_train + data.expect_val)
    return Images(data.expect_train, data.expect_val, size, "data.expect_train, data.expect_val", weighed_by)


def estimate_stage(config: StageConfig, runtime: Runtime, images: Images) -> StageEstimate:
    """The costs of one stage."""
    arch, batch = config.architecture, config.optimizer.global_batch
    trained_on, held_out = training_positions(images.train, config)
    per_epoch = len(trained_on) // batch
    if per_epoch == 0:
        raise UserError(
            f"optimizer.global_batch: {batch} is more than the {len(trained_on)} training images of {images.counted_by}; lower it"
        )
    epochs = config.epochs - config.start_epoch
    validations = sum(_validates(config, epoch) for epoch in range(config.start_epoch, config.epochs))
    validated = len(held_out) if config.evaluation.select_on == "minival" else images.val
    parts = profile(arch, config.optimizer.amp_level)
    weights = FLOAT32 * sum(part.parameters for part in parts)
    steps, checkpoint, state = epochs * per_epoch, CHECKPOINT_COPIES * weights, STATE_COPIES * weights
    return StageEstimate(
        name=config.stage,
        first_epoch=config.start_epoch,
        end_epoch=config.epochs,
        steps=steps,
        trained=steps * batch,
        validated=validations * len(WEIGHT_SETS) * validated,
        macs=sum(part.macs for part in parts),
        checkpoint=checkpoint,
        state=state,
        disk=checkpoint + runtime.keep_states * state + HISTORY_ROW * steps,
        memory=device_bytes(config, runtime),
    )


def device_bytes(config: StageConfig, runtime: Runtime) -> int:
    """Memory of a device in training, a lower bound."""
    parts = profile(config.architecture, config.optimizer.amp_level, runtime.recompute)
    weights = FLOAT32 * sum(part.parameters for part in parts)
    copies = sum(COPIES_OF_WEIGHTS.values()) + (runtime.accumulation > 1)
    return copies * weights + runtime.batch_size * sum(part.activations for part in parts)


def estimate_text(settings: Settings, images_per_s: float | None) -> str:
    """The text that `cswin plan` prints."""
    images = count_images(settings.data)
    runtime = settings.runtime
    stages = [estimate_stage(resolve_stage(settings, name), runtime, images) for name in settings.stages]
    rows = [
        ("epochs", [f"{s.first_epoch} to {s.end_epoch}" for s in stages], f"{stages[-1].end_epoch}"),
        ("steps", [f"{s.steps:,}" for s in stages], f"{sum(s.steps for s in stages):,}"),
        ("images trained on", [f"{s.trained:,}" for s in stages], f"{sum(s.trained for s in stages):,}"),
        ("images validated (raw, EMA)", [f"{s.validated:,}" for s in stages], f"{sum(s.validated for s in stages):,}"),
        ("GFLOP", [f"{s.gflop:.2e}" for s in stages], f"{sum(s.gflop for s in stages):.2e}"),
        ("checkpoint", [size_text(s.checkpoint) for s in stages], ""),
        ("training state", [size_text(s.state) for s in stages], ""),
        ("results on disk", [size_text(s.disk) for s in stages], size_text(_results_disk(stages))),
        ("memory per device, at least", [size_text(s.memory) for s in stages], size_text(max(s.memory for s in stages))),
    ]
    if images_per_s:
        hours = [s.hours(images_per_s) for s in stages]
        rows.append((f"hours at {images_per_s:g} images/s", [f"{h:,.1f}" for h in hours], f"{sum(hours):,.1f}"))
    lines = [
        f"run {settings.run}: {images.train:,} training and {images.val:,} validation images (from {images.counted_by}), "
        f"{runtime.devices} x {runtime.device_target}, {runtime.batch_size} images per device",
        "",
        text_table(
            ["", *(s.name for s in stages), "whole run"], [(n, *each, total) for n, each, total in rows], "plain", "right"
        ),
        "",
        *_data_disk(settings.data, images),
        "",
        f"results on disk: {runtime.keep_states} states and a checkpoint per stage, one state more while a state is written.",
        "memory: weights, gradients, moments, EMA and activations for the backward pass; a runtime needs more (cswin profile).",
    ]
    if not images_per_s:
        return "\n".join([*lines, "hours: give --images-per-s, over all devices (benchmarks/, or a stage's history)."])
    return "\n".join([*lines, "hours: training only, without validation, saving and compilation."])


def _validates(config: StageConfig, epoch: int) -> bool:
    return (epoch + 1) % config.evaluation.every == 0 or epoch + 1 == config.epochs


def _results_disk(stages: list[StageEstimate]) -> int:
    return sum(s.disk for s in stages) + max(s.state for s in stages)


def _data_disk(data: Data, images: Images) -> list[str]:
    """The disk space of archive, images and shards, as a line."""
    count, size = images.train + images.val, images.bytes
    extracted = size + count * BLOCK / 2 if data.own_images is None else 0
    shards = size + count * 80
    most = f"{size_text(size + extracted + shards)} together" if extracted else f"{size_text(shards)} beside the images"
    kept = "" if not extracted or data.keep_images else f", {size_text(size + shards)} after conversion"
    parts = [f"images {size_text(size)} ({images.weighed_by})"]
    parts += [f"extracted {size_text(extracted)}"] if extracted else []
    return [f"data on disk: {', '.join([*parts, f'shards {size_text(shards)}'])}: {most}{kept}"]


def _archives_size(data: Data, count: int) -> tuple[float, str]:
    files = [Path(path) for path in (data.archive, data.train_archive, data.val_archive, data.path) if path]
    if files and all(file.is_file() for file in files) and (size := sum(file.stat().st_size for file in files)):
        return size, "size of " + ", ".join(map(str, files))
    return count * IMAGENET_BYTES, f"assumed: {IMAGENET_BYTES / 1000:.0f} kB an image, as in ImageNet"


def positive(value: float, name: str) -> float:
    """The value, checked.

    Raises:
        UserError: if it is not a finite positive number.
    """
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{name}: {value} must be positive")
    return value
