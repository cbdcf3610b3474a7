"""The uniform average of checkpoints: stochastic weight averaging along one training (Izmailov et al., arXiv 1803.05407), a uniform
model soup over several (Wortsman et al., arXiv 2203.05482). Without batch normalisation there are no statistics to recompute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cswin.checkpoint import Checkpoint, CheckpointRecord, check_parameters, file_sha256, load_checkpoint
from cswin.errors import UserError
from cswin.model.weights import Layout
from cswin.provenance import git_commit, versions


def average_checkpoints(paths: Sequence[Path]) -> Checkpoint:
    """The mean of two or more checkpoints, computed in float64, and of their moving averages where they have them.

    Its provenance names each file with its SHA-256.

    Raises:
        UserError: if they differ in architecture, classes, preprocessing, parameters or in having a moving average, or if one is
            given twice.
    """
    if len(paths) < 2:
        raise UserError(f"{', '.join(map(str, paths))}: an average is of two or more checkpoints")
    first, hashes = load_checkpoint(paths[0]), {}
    sums: tuple[dict[str, np.ndarray], ...] = ({}, {})
    for path in paths:
        checkpoint, digest = load_checkpoint(path), file_sha256(path)
        if digest in hashes:
            raise UserError(f"{path}: holds the same as {hashes[digest]}; give each checkpoint once")
        if problems := _differences(checkpoint, first):
            raise UserError(f"{path}: cannot be averaged with {paths[0]}: {'; '.join(problems)}")
        shapes = {name: value.shape for name, value in checkpoint.weights.items()}
        check_parameters(shapes, Layout.of(checkpoint.record.architecture).shapes, path)
        for total, weights in zip(sums, (checkpoint.weights, checkpoint.ema or {}), strict=True):
            for name, value in weights.items():
                if not np.isfinite(value).all():
                    raise UserError(f"{path}: {name} is not finite, so its training has failed; leave this checkpoint out")
                total[name] = total.get(name, 0.0) + value.astype(np.float64)
        hashes[digest] = path
    raw, ema = ({name: (value / len(paths)).astype(np.float32) for name, value in total.items()} for total in sums)
    origin = {"average_of": [{"file": str(path), "sha256": digest} for digest, path in hashes.items()]}
    record = first.record
    origin |= {"git": git_commit(), "versions": versions()}
    return Checkpoint(CheckpointRecord(record.architecture, record.class_names, record.preprocessing, origin), raw, ema or None)


def _differences(checkpoint: Checkpoint, first: Checkpoint) -> list[str]:
    """The differences that prevent averaging, each as: value of this checkpoint, not that of the first."""
    found, wanted = checkpoint.record, first.record
    problems = found.architecture.differences(wanted.architecture)
    pairs = zip(found.class_names, wanted.class_names, strict=False)
    problems += [f"class {i}: {mine!r}, not {theirs!r}" for i, (mine, theirs) in enumerate(pairs) if mine != theirs][:1]
    if found.preprocessing != wanted.preprocessing:
        problems.append(f"{found.preprocessing}, not {wanted.preprocessing}")
    if (checkpoint.ema is None) != (first.ema is None):
        has, hasnt = ("no", "one") if checkpoint.ema is None else ("a", "none")
        problems.append(
            f"{has} moving average, not {hasnt}; take one set of weights of each first (`cswin convert-weights --which raw`, or ema)"
        )
    return problems
