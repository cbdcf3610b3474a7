"""Drop path (stochastic depth, arXiv 1603.09382) as data: the factors are drawn on the host and are an input of the network.

So the network is a pure function, an interrupted epoch resumes with the same factors, and they are the same for any split of a
batch over devices.
"""

from __future__ import annotations

import numpy as np


def drop_path_rates(rate: float, depth: tuple[int, ...]) -> np.ndarray:
    """Rate of each block, linear from 0 at the first to `rate` at the last; float64, shape (sum(depth),)."""
    return np.linspace(0.0, rate, sum(depth))


def drop_path_factors(rates: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """The factor of each residual branch of each sample: 0 with a probability of the block's rate, else 1 / (1 - rate).

    Returns:
        float32, shape (2 * blocks, batch_size): rows 2 i and 2 i + 1 are the attention and the MLP branch of block i.
    """
    rates = np.repeat(rates, 2)[:, None]
    kept = rng.random((len(rates), batch_size)) >= rates
    return (kept / (1.0 - rates)).astype(np.float32)
