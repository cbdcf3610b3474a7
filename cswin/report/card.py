"""The run card, a Markdown page: what was trained, on what and how; the result, how to use it, and what was not run.

All its content comes from the files of the run; nothing is computed again.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cswin.config.resolve import Expectations, StageConfig
from cswin.config.runtime import Runtime
from cswin.data.store.dataset import Dataset
from cswin.distributed.backend import backend_text
from cswin.profile import profile
from cswin.progress import duration_text
from cswin.report.effort import training_attempts
from cswin.report.render import render
from cswin.report.run import StageResult
from cswin.report.statistics import wilson
from cswin.report.verdict import IMAGENET, WHOLE_BATCHES, verdict_of, verdict_text
from cswin.run.attempts import FINISHED, AttemptSummary

REPORT_DEVICES = 8
HASH = 12  # number of digits shown of a hash; the full hash is in a file that the card names


@dataclass(frozen=True)
class Run:
    """The input of a card.

    Attributes:
        folder: results/<run>.
        expected: the stages, and the figures to compare with.
        stages: the stages, all evaluated.
        runtime: the resolved runtime section.
        dataset: the dataset with which they were trained.
    """

    folder: Path
    expected: Expectations
    stages: list[StageResult]
    runtime: Runtime
    dataset: Dataset

    def attempts(self, stage: StageResult) -> list[AttemptSummary]:
        """The attempts of the training that led to the stage's checkpoint."""
        return training_attempts(stage.attempts)

    @property
    def last(self) -> StageResult:
        return self.stages[-1]

    @property
    def checkpoint(self) -> Path:
        return self.folder / self.last.name / self.last.record["checkpoint"]


def card(run: Run) -> str:
    """The page, made by `templates/card.md.j2`; `docs/watching.md` describes it."""
    names = [stage.name for stage in run.stages]
    recipes = [_recipe_of(stage) for stage in run.stages]
    tried = [(stage.name, run.attempts(stage)) for stage in run.stages]
    other_data = [stage.name for stage in run.stages if stage.record["manifest"] != run.dataset.manifest_hash]
    return render(
        "card.md",
        run=run,
        last=run.last,
        dataset=run.dataset,
        figures=run.last.evaluation[_chosen(run.last)],
        which=_chosen(run.last),
        weights=_weights(_chosen(run.last)),
        result_head=_RESULT,
        result=[_result_of(stage) for stage in run.stages],
        comparison=_comparison(run),
        reservations=_reservations(run),
        data=_data(run),
        other_data=other_data,
        network=_network(run),
        names=names,
        recipe=[[name, *(of_stage[name] for of_stage in recipes)] for name in recipes[0]],
        attempts=[_attempt_row(name, i, one) for name, attempts in tried for i, one in enumerate(attempts, 1)],
        times=tried,
        took=_took,
        computed_by=_computed_by,
        quote=lambda path: shlex.quote(str(path)),
    )


_RESULT = ["stage", "epochs", "checkpoint's epoch", "images", "top-1 raw, %", "top-5 raw, %", "top-1 EMA, %", "top-5 EMA, %"]


def _result_of(stage: StageResult) -> list[Any]:
    row = [stage.name, f"{stage.config.start_epoch}-{stage.config.epochs}", stage.record["best_epoch"]]
    row.append(f"{stage.evaluation['raw']['n']:,}")
    for which in ("raw", "ema"):
        figures = stage.evaluation[which]
        low, high = wilson(figures["right1"], figures["n"])
        row += [f"{figures['top1']:.2f} ({low:.2f} to {high:.2f})", f"{figures['top5']:.2f}"]
    return row


def _comparison(run: Run) -> list[str]:
    """Comparison with reported and published figures, each with its own counting."""
    lines = []
    for stage in run.stages:
        reported, which = run.expected.stages.get(stage.name), _chosen(stage)
        mine = stage.evaluation[which]["top1_whole_batches"]
        if reported is not None and mine is not None:
            lines.append(
                f"- {stage.name}: reported {reported:.2f} %, counted over whole batches of 128; by the same counting "
                f"{mine:.2f} % here ({_weights(which)}): {mine - reported:+.2f}{_verdict(stage, reported, WHOLE_BATCHES)}."
            )
        elif reported is not None:
            lines.append(
                f"- {stage.name}: reported {reported:.2f} %, counted over whole batches of 128; there is no such batch here."
            )
    if run.expected.paper_top1 is not None:
        which = _chosen(run.last)
        mine = run.last.evaluation[which]["top1"]
        lines.append(
            f"- Published or expected: {run.expected.paper_top1:.2f} %; {run.last.name} here {mine:.2f} % ({_weights(which)}): "
            f"{mine - run.expected.paper_top1:+.2f}{_verdict(run.last, run.expected.paper_top1, 'top1')}."
        )
    return lines


def _verdict(stage: StageResult, published: float, counting: str) -> str:
    verdict = verdict_of([stage], published, counting)
    return f": {verdict_text(verdict)}" if verdict else ""


def _reservations(run: Run) -> list[str]:
    """What was not run, and the limitations of the result."""
    starts = [attempt.start for stage in run.stages for attempt in run.attempts(stage)]
    targets = {start.get("device_target", run.runtime.device_target) for start in starts} or {run.runtime.device_target}
    lines = []
    if "Ascend" not in targets:
        lines.append("- **Not run on Ascend.** Training ran on the CPU. Results and speed on NPUs are unknown.")
    if len(targets) > 1:
        lines.append(f"- Attempts ran on different devices: {', '.join(sorted(targets))}.")
    if (run.dataset.images("train"), run.dataset.images("val"), len(run.dataset.class_names)) != IMAGENET:
        lines.append(f"- Not run on ImageNet-1K: the dataset is `{run.dataset.name}`; see below.")
    lines.append(f"- One training with one seed ({run.last.config.seed}): the variation between seeds was not measured.")
    lines += _choice(run)
    if all(value is None for value in run.expected.stages.values()):
        lines.append("- The report has no figures for this configuration, so there is no comparison with it.")
    elif targets != {"Ascend"} or {start.get("devices") for start in starts} != {REPORT_DEVICES}:
        lines.append(f"- The report's figures come from {REPORT_DEVICES} x Ascend 910; this run had other devices.")
    if any(stage.config.optimizer.amp_level != "O0" for stage in run.stages):
        lines.append("- Trained in mixed precision, evaluated in float32.")
    if any((start.get("git") or {}).get("dirty") for start in starts):
        lines.append("- The code differed from its commit (dirty working tree) in at least one attempt.")
    if any(start.get("git") is None for start in starts):
        lines.append("- The commit of the code is unknown, because it was not run from a git checkout.")
    if len({(start.get("git") or {}).get("commit") for start in starts}) > 1:
        lines.append("- The attempts ran with different commits of the code; see below.")
    return lines


def _choice(run: Run) -> list[str]:
    on = {stage.config.evaluation.select_on for stage in run.stages if stage.config.evaluation.select == "best"}
    lines = []
    if "val" in on:
        lines.append("- The checkpoint's epoch was chosen on the validation set that is also reported: an optimistic choice.")
    if "minival" in on:
        lines.append("- The checkpoint's epoch was chosen on training images that were held out, not on the validation set.")
    return lines or ["- The last epoch was taken; no epoch was chosen by its result."]


def _data(run: Run) -> list[list[str]]:
    dataset, evaluation = run.dataset, run.last.config.evaluation
    rows = [
        ["dataset", f"`{dataset.path}`"],
        ["training images", f"{dataset.images('train'):,}"],
        ["validation images", f"{dataset.images('val'):,}"],
        ["classes", f"{len(dataset.class_names):,}"],
        ["hash of all images, labels and their order", f"`{dataset.manifest_hash}`"],
    ]
    if evaluation.select_on == "minival":
        rows.insert(2, ["of these, held out to choose the epoch", f"{evaluation.minival_images:,}"])
    return rows


def _network(run: Run) -> list[list[str]]:
    arch, parts = run.last.config.architecture, profile(run.last.config.architecture)
    return [
        ["architecture", f"`{run.last.config.model.arch}`"],
        ["input", f"{arch.in_channels} x {arch.image_size} x {arch.image_size}"],
        ["parameters", f"{sum(part.parameters for part in parts):,}"],
        ["MACs per image", f"{sum(part.macs for part in parts):,}"],
        ["channels", ", ".join(map(str, arch.dims))],
        ["blocks", ", ".join(map(str, arch.depth))],
        ["stripe widths", ", ".join(map(str, arch.split_size))],
        ["heads", ", ".join(map(str, arch.num_heads))],
    ]


def _recipe_of(stage: StageResult) -> dict[str, str]:
    config, optimizer, augment = stage.config, stage.config.optimizer, stage.config.augment
    return {
        "epochs": f"{config.start_epoch}-{config.epochs}",
        "starts from": _start(stage),
        "learning rate": _learning_rate(config),
        "global batch": f"{optimizer.global_batch:,}",
        "AdamW": f"betas {optimizer.beta1:g}, {optimizer.beta2:g}, eps {optimizer.eps:g}, weight decay {optimizer.weight_decay:g}",
        "maximum gradient norm": "none" if optimizer.clip_norm is None else f"{optimizer.clip_norm:g}",
        "EMA": f"{optimizer.ema_decay:g}",
        "precision": optimizer.amp_level if optimizer.amp_level == "O0" else f"{optimizer.amp_level}, {optimizer.amp_dtype}",
        "drop path": f"{config.model.drop_path:g}",
        "RandAugment": augment.rand_augment or "none",
        "mixup, cutmix": f"{augment.mixup:g}, {augment.cutmix:g}, with probability {augment.mixup_prob:g}",
        "random erasing": f"{augment.erase_prob:g}",
        "label smoothing": f"{augment.label_smoothing:g}",
        "crop in evaluation": f"{config.evaluation.crop_ratio:g}",
        "seed": str(config.seed),
    }


def _start(stage: StageResult) -> str:
    """What the stage started from, according to its history."""
    start = stage.history.start
    if start.get("carry") == "all":
        return f"complete state of `{start['from']}`"
    if start.get("carry") == "weights":
        reset = f"; reset: {', '.join(start['anew'])}" if start.get("anew") else ""
        head = f"; head {start['head']}" if start.get("head") else ""
        return f"{start['which']} weights of `{start['from']}`{reset}{head}"
    return start.get("from", "not recorded")


def _learning_rate(config: StageConfig) -> str:
    schedule, phases = config.schedule, []
    begin = schedule.cosine_length(config.epochs)
    if config.start_epoch < begin:
        warmup = f"warmup {schedule.warmup_length} epochs to {schedule.base_lr:g}, " if schedule.warmup_length else ""
        phases.append(f"{warmup}cosine to {schedule.min_lr:g} at epoch {begin}")
    for name in ("cool", "tail", "over"):
        length = getattr(schedule, f"{name}_length")
        if length and begin + length > config.start_epoch:
            phases.append(f"{getattr(schedule, f'{name}_lr'):g} to epoch {begin + length}")
        begin += length
    return ", ".join(phases)


def _took(tried: list[AttemptSummary]) -> str:
    hours = sum(attempt.hours or 0.0 for attempt in tried)
    return f"{duration_text(3600 * hours)} ({hours:.3f} h)"


def _computed_by(tried: list[AttemptSummary]) -> list[str]:
    """The settings of the device in all attempts, without repetition."""
    return list(dict.fromkeys(backend_text(attempt.start["backend"]) for attempt in tried if "backend" in attempt.start))


def _attempt_row(stage: str, number: int, attempt: AttemptSummary) -> list[Any]:
    start, git = attempt.start, attempt.start.get("git")
    commit = "unknown" if git is None else git["commit"][:HASH] + (" (dirty)" if git["dirty"] else "")
    names = {"python": "Python", "mindspore": "MindSpore", "cann": "CANN", "snakemake": "Snakemake"}
    versions = ", ".join(f"{text} {start['versions'][key]}" for key, text in names.items() if key in start["versions"])
    return [
        stage,
        number,
        start["time"][:19].replace("T", " "),
        "?" if attempt.hours is None else duration_text(3600 * attempt.hours),
        "-" if attempt.from_step is None else f"{attempt.from_step:,}{' (resumed)' if attempt.resumed else ''}",
        FINISHED if attempt.reason == FINISHED else (attempt.reason or "not recorded").replace("|", "/").replace("\n", " "),
        f"{start['host']}, {start.get('devices', '?')} x {start.get('device_target', '?')}",
        start.get("job") or "-",
        commit,
        versions,
    ]


def _chosen(stage: StageResult) -> str:
    return stage.config.evaluation.select_by


def _weights(which: str) -> str:
    return {"raw": "raw weights", "ema": "EMA weights"}[which]
