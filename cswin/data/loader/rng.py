"""Random streams that are functions of their coordinates.

Every stream is a Philox4x64-10 generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) whose key is
(seed, name of the stream) and whose counter starts at (0, group, index, epoch). Philox is a bijection of the counter under a
key, and a stream advances only in the lowest counter word, so two streams never share a block. A stream can be created without
running through earlier ones: any worker, at any time, gets the same numbers for the same sample.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from cswin.errors import UserError

_WORD = 1 << 64


class Stream(IntEnum):
    """The named streams. The numbers make runs reproducible: never change or reuse one."""

    SAMPLE = 1
    BATCH = 2
    DROP_PATH = 3
    ORDER = 4
    INIT = 5
    HOLDOUT = 6


def _generator(stream: Stream, seed: int, *, epoch: int = 0, index: int = 0, group: int = 0) -> np.random.Generator:
    for name, value in (("seed", seed), ("epoch", epoch), ("index", index), ("group", group)):
        if not 0 <= value < _WORD:
            raise UserError(f"{name} is {value}: give an integer from 0 to 2^64 - 1")
    # Arrays make construction cheap: it happens once per sample, and integers as seeds take twice as long.
    key = np.array([seed, int(stream)], dtype=np.uint64)
    counter = np.array([0, group, index, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The augmentation of sample `index` (its position in the dataset) in `epoch`."""
    return _generator(Stream.SAMPLE, seed, epoch=epoch, index=index)


def batch_rng(seed: int, epoch: int, step: int, group: int = 0) -> np.random.Generator:
    """The mixing of one mixup group of the global batch of `step` (counted within `epoch`)."""
    return _generator(Stream.BATCH, seed, epoch=epoch, index=step, group=group)


def drop_path_rng(seed: int, epoch: int, step: int) -> np.random.Generator:
    """The drop path factors of the global batch of `step`."""
    return _generator(Stream.DROP_PATH, seed, epoch=epoch, index=step)


def order_rng(seed: int, epoch: int) -> np.random.Generator:
    """The order of the training samples in `epoch`."""
    return _generator(Stream.ORDER, seed, epoch=epoch)


def init_rng(seed: int) -> np.random.Generator:
    """The initial weights."""
    return _generator(Stream.INIT, seed)


def holdout_rng(seed: int) -> np.random.Generator:
    """The choice of the held-out part of the training set."""
    return _generator(Stream.HOLDOUT, seed)
