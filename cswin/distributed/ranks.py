"""The processes of a training, one per device: the rank of this one, and their exchanges."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_TEXT_BYTES = 256  # maximum length of a reason that is sent to the others


@dataclass(frozen=True)
class Ranks:
    """This process among those of a training; by default it is the only one.

    Exchanges are collectives, so all ranks must call the same methods in the same order. Values are sent as 32-bit words and never
    added up, so they arrive bit-identical.

    Attributes:
        rank: number of this process.
        size: number of processes.
        device: number of its device on this node.
    """

    rank: int = 0
    size: int = 1
    device: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files."""
        return self.rank == 0

    @property
    def part(self) -> slice:
        """This rank's share of a sequence: every `size`-th item. No rank has more items than the first one."""
        return slice(self.rank, None, self.size)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Rows (n, ...) that `part` has distributed: all of them in their order, on every rank. n may differ between ranks."""
        if self.size == 1:
            return rows
        counts = self._words_of_all(np.array([len(rows)], np.int32))[:, 0]
        width = rows.dtype.itemsize * int(np.prod(rows.shape[1:], dtype=np.int64))
        padded = np.zeros((counts.max(), -(-width // 4) * 4), np.uint8)
        padded[: len(rows), :width] = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), width)
        received = self._words_of_all(padded.view(np.int32).reshape(-1)).view(np.uint8).reshape(self.size, *padded.shape)
        whole = np.empty((counts.sum(), *rows.shape[1:]), rows.dtype)
        for rank, count in enumerate(counts):  # without the padding
            part = np.ascontiguousarray(received[rank, :count, :width]).reshape(-1).view(rows.dtype)
            whole[rank :: self.size] = part.reshape(count, *rows.shape[1:])
        return whole

    def agree(self, reason: str | None) -> str | None:
        """The reason of the lowest rank that has one, on every rank; None if no rank has one. Waits for all ranks."""
        if self.size == 1:
            return reason
        text = (reason or "").encode()[:_TEXT_BYTES].ljust(_TEXT_BYTES, b"\0")
        for row in self._words_of_all(np.frombuffer(text, np.int32)):
            if row.any():
                return row.tobytes().rstrip(b"\0").decode(errors="ignore")
        return None

    def same(self, arrays: Iterable[np.ndarray]) -> bool:
        """Whether the values are bit-identical on all ranks; only digests are sent."""
        digest = hashlib.blake2b(digest_size=32)
        for array in arrays:
            digest.update(np.ascontiguousarray(array).data)
        words = np.frombuffer(digest.digest(), np.int32)
        return self.size == 1 or bool((self._words_of_all(words) == words).all())

    def follow_first(self, numbers: Iterable[int], parameters: Iterable) -> list[int]:
        """The first rank's integers (32 bits), and its values in all parameters (float32), on every rank."""
        numbers = list(numbers)
        if self.size == 1:
            return numbers
        import mindspore as ms
        from mindspore import ops

        broadcast = ops.Broadcast(0)
        for parameter in parameters:
            (value,) = broadcast((ms.Tensor(parameter.asnumpy().reshape(-1)),))
            parameter.set_data(ms.Tensor(value.asnumpy().reshape(parameter.shape)))
        return self._words_of_all(np.array(numbers, np.int32))[0].tolist()

    def _words_of_all(self, words: np.ndarray) -> np.ndarray:
        """(n,) int32 of every rank, the same n: (size, n)."""
        import mindspore as ms
        from mindspore import ops

        return ops.AllGather()(ms.Tensor(words)).asnumpy().reshape(self.size, len(words))


ALONE = Ranks()
