"""Loss, clipping, AdamW, moving average and learning rate in float64 NumPy, from their formulas, independent of cswin.train.

Only the network is shared: a function that returns logits, and one that maps a gradient of the logits to gradients of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

Arrays = list[np.ndarray]


@dataclass
class ReferenceTraining:
    """Training by the formulas of the papers; all sums and updates in float64.

    Attributes:
        logits: (weights, images, factors) -> (B, classes).
        pull_back: (weights, images, factors, gradient of the logits) -> gradients of the weights.
        weights: start values.
    """

    logits: Callable[..., np.ndarray]
    pull_back: Callable[..., Arrays]
    weights: Arrays
    base_lr: float
    warmup_lr: float
    min_lr: float
    warmup_steps: int
    cosine_steps: int
    cool_lr: float
    weight_decay: float
    clip_norm: float
    ema_decay: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    steps: int = 0
    moment1: Arrays = field(init=False)
    moment2: Arrays = field(init=False)
    ema: Arrays = field(init=False)

    def __post_init__(self):
        self.weights = [w.astype(np.float64) for w in self.weights]
        self.moment1 = [np.zeros_like(w) for w in self.weights]
        self.moment2 = [np.zeros_like(w) for w in self.weights]
        self.ema = [w.copy() for w in self.weights]

    def learning_rate(self) -> float:
        """Linear from warmup_lr, half a cosine wave from base_lr to min_lr, then constant."""
        if self.steps < self.warmup_steps:
            return self.warmup_lr + (self.base_lr - self.warmup_lr) * self.steps / self.warmup_steps
        if self.steps >= self.cosine_steps:
            return self.cool_lr
        t = (self.steps - self.warmup_steps) / (self.cosine_steps - self.warmup_steps)
        return self.min_lr + (self.base_lr - self.min_lr) * (1 + math.cos(math.pi * t)) / 2

    def step(self, images: np.ndarray, targets: np.ndarray, factors: np.ndarray) -> dict[str, float]:
        """One update. Returns the figures of the step."""
        logits = self.logits(self.weights, images, factors).astype(np.float64)
        targets = targets.astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        probabilities = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
        loss = -(targets * np.log(probabilities)).sum(axis=1).mean()
        gradient = (probabilities * targets.sum(axis=1, keepdims=True) - targets) / len(logits)
        gradients = [g.astype(np.float64) for g in self.pull_back(self.weights, images, factors, gradient)]
        norm = math.sqrt(sum((g**2).sum() for g in gradients))
        clip, lr = min(1.0, self.clip_norm / (norm + 1e-6)), self.learning_rate()
        self.steps += 1
        for i, g in enumerate(gradients):
            self._update(i, g * clip, lr)
        return {"loss": loss, "lr": lr, "grad_norm": norm}

    def _update(self, i: int, g: np.ndarray, lr: float) -> None:
        if self.weights[i].ndim >= 2:
            self.weights[i] *= 1 - lr * self.weight_decay
        self.moment1[i] = self.beta1 * self.moment1[i] + (1 - self.beta1) * g
        self.moment2[i] = self.beta2 * self.moment2[i] + (1 - self.beta2) * g**2
        mean = self.moment1[i] / (1 - self.beta1**self.steps)
        deviation = np.sqrt(self.moment2[i] / (1 - self.beta2**self.steps))
        self.weights[i] -= lr * mean / (deviation + self.eps)
        self.ema[i] = self.ema_decay * self.ema[i] + (1 - self.ema_decay) * self.weights[i]
