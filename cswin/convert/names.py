"""What training tools leave beside the weights, and how they rename them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")
WRAPPERS = ("module.", "_orig_mod.", "model.", "network.")  # data parallel, torch.compile, Lightning, MindSpore's cells
BACKBONE = "backbone."  # beside it lie the heads of detectors
COUNTERS = ("total_ops", "total_params")  # thop, a profiler, adds one to every module
MOMENTS = ("moment1", "moment2", "moments", "adam_m", "adam_v", "exp_avg", "exp_avg_sq", "vhat")  # MindSpore's optimizers
MINDSPORE = {"gamma": "weight", "beta": "bias"}  # of its LayerNorm


def parameters(entries: Mapping[str, Value]) -> tuple[dict[str, Value], list[str]]:
    """The entries that can be a network's parameters, under the names that the network gives them.

    Returns:
        Them, and the names of the others: moments and counters of optimizers, counters of profilers, what lies beside a backbone, and
        what has no place in a module (`global_step`, `learning_rate`).
    """
    kept = {name: value for name, value in entries.items() if not _is_beside(name)}
    left_out = [name for name in entries if name not in kept]
    while prefix := _prefix(kept):
        left_out += [name for name in kept if not name.startswith(prefix)]
        kept = {name.removeprefix(prefix): value for name, value in kept.items() if name.startswith(prefix)}
    return {_renamed(name): value for name, value in kept.items()}, left_out


def _is_beside(name: str) -> bool:
    first, *rest = name.split(".")
    return not rest or first in MOMENTS or rest[-1] in COUNTERS


def _prefix(names: Iterable[str]) -> str | None:
    names = list(names)
    common = [prefix for prefix in WRAPPERS if names and all(name.startswith(prefix) for name in names)]
    return common[0] if common else BACKBONE if any(name.startswith(BACKBONE) for name in names) else None


def _renamed(name: str) -> str:
    module, _, last = name.rpartition(".")
    return f"{module}.{MINDSPORE.get(last, last)}" if module else name


def summary(left_out: Iterable[str]) -> list[str]:
    """Names for a person: of what was left out often, the kind and how many there are."""
    kinds = Counter()
    for name in left_out:
        parts = name.split(".")
        kind = f"*.{parts[-1]}" if parts[-1] in COUNTERS else f"{parts[0]}.*" if len(parts) > 1 else name
        kinds[kind] += 1
    return [kind if number == 1 else f"{kind} ({number:,})" for kind, number in kinds.items()]
