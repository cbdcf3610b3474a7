"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

import numpy as np

from cswin.config.settings import Schedule


def learning_rate(step: int, steps_per_epoch: int, schedule: Schedule, epochs: int) -> float:
    """Learning rate of an optimizer step.

    Linear warm-up from warmup_lr to base_lr, then min_lr + (base_lr - min_lr) / 2 * (1 + cos(pi t)) with t from 0 to 1, then
    the constant phases cool, tail and over.

    Args:
        step: number of optimizer steps before this one, on the whole schedule.
        steps_per_epoch: optimizer steps in an epoch.
        schedule: rates and phase lengths in epochs.
        epochs: end of the stage on the whole schedule; with the phase lengths it determines the length of the cosine.
    """
    epoch = step / steps_per_epoch if schedule.per == "step" else step // steps_per_epoch
    if epoch < schedule.warmup_length:
        return schedule.warmup_lr + (schedule.base_lr - schedule.warmup_lr) * epoch / schedule.warmup_length
    end = schedule.cosine_length(epochs)
    if epoch < end:
        start = schedule.warmup_length if schedule.cosine_from == "warmup" else 0
        t = (epoch - start) / (end - start)
        return schedule.min_lr + (schedule.base_lr - schedule.min_lr) / 2 * (1 + math.cos(math.pi * t))
    for length, rate in ((schedule.cool_length, schedule.cool_lr), (schedule.tail_length, schedule.tail_lr)):
        end += length
        if epoch < end:
            return rate
    return schedule.over_lr


def learning_rates(first: int, last: int, steps_per_epoch: int, schedule: Schedule, epochs: int) -> np.ndarray:
    """Rates of the steps first (inclusive) to last (exclusive), float32."""
    rates = [learning_rate(step, steps_per_epoch, schedule, epochs) for step in range(first, last)]
    return np.asarray(rates, np.float32)
