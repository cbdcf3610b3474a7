"""Mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899) as timm defines them: `draw_mixup`, then `apply_mixup`.

Samples are mixed within groups of fixed size, each group with its own reverse. The mixing is drawn per group of the *global*
batch; `local_rows` distributes the pairs of partners to micro-batches. So a batch is the same for every split over devices and
accumulation steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cswin.data.images.kernels import mix_rounded
from cswin.errors import UserError

if TYPE_CHECKING:
    from cswin.config.settings import Augment

MODES = ("batch", "pair", "elem")


@dataclass(frozen=True)
class Mixing:
    """How each sample is mixed with its partner; arrays of one length.

    lam (float64): the sample's own share; with 1 it is not changed. For cutmix: the share of the area outside the clipped box.
    box (n, 4) int32: top, bottom, left, right (exclusive) of the part that comes from the partner; zeros without cutmix.
    is_cutmix (bool): whether the box, rather than the blend, is used.
    """

    lam: np.ndarray
    box: np.ndarray
    is_cutmix: np.ndarray

    def __len__(self) -> int:
        return len(self.lam)

    def rows(self, indices: Sequence[int] | np.ndarray) -> Mixing:
        """The rows of the samples at `indices`, in that order."""
        return Mixing(self.lam[indices], self.box[indices], self.is_cutmix[indices])

    @property
    def mixes(self) -> bool:
        """Whether any sample is changed."""
        return bool((self.lam != 1).any())

    @staticmethod
    def identity(size: int) -> Mixing:
        """`size` rows that change no sample."""
        return Mixing(np.ones(size), np.zeros((size, 4), np.int32), np.zeros(size, bool))

    @staticmethod
    def concatenate(groups: Sequence[Mixing]) -> Mixing:
        """The mixing of a global batch from those of its groups, in their order."""
        return Mixing(*(np.concatenate([getattr(mixing, name) for mixing in groups]) for name in ("lam", "box", "is_cutmix")))


def draw_mixup(rng: np.random.Generator, group: int, image_size: tuple[int, int], augment: Augment) -> Mixing:
    """Draws how a group of `group` samples is mixed; the partner of sample i is sample group - 1 - i.

    lam ~ Beta(alpha, alpha) with alpha `augment.mixup` or `cutmix`. If both are positive, cutmix is used with probability
    `switch_prob`; an alpha of 0 disables its method. With probability 1 - `mixup_prob` nothing is mixed. `mixup_mode`: one draw per
    group (`batch`), per pair of partners (`pair`) or per sample (`elem`). `image_size` is (height, width) in pixels.

    Raises UserError for an odd group if mixing is enabled, an unknown mode, or numbers out of range.
    """
    mode = augment.mixup_mode
    if mode not in MODES:
        raise UserError(f"mixup_mode is {mode!r}: choose one of {', '.join(MODES)}")
    for name in ("mixup_prob", "switch_prob"):
        if not 0 <= (value := getattr(augment, name)) <= 1:
            raise UserError(f"{name} is {value}: give a probability from 0 to 1")
    for name in ("mixup", "cutmix"):
        if (value := getattr(augment, name)) < 0:
            raise UserError(f"{name} is {value}: give the alpha of its Beta distribution, or 0 to turn it off")
    if augment.mixup_prob == 0 or augment.mixup == augment.cutmix == 0:
        return Mixing.identity(group)
    _require_even(group)

    draws = {"batch": 1, "pair": group // 2, "elem": group}[mode]
    mixing = _draw(rng, draws, image_size, augment)
    if mode == "batch":
        return mixing.rows(np.zeros(group, np.intp))
    if mode == "pair":
        first = np.arange(draws)
        return mixing.rows(np.concatenate([first, first[::-1]]))
    return mixing


def _draw(rng: np.random.Generator, count: int, image_size: tuple[int, int], augment: Augment) -> Mixing:
    mixup, cutmix = augment.mixup, augment.cutmix
    is_cutmix = rng.random(count) < augment.switch_prob if mixup > 0 and cutmix > 0 else np.full(count, cutmix > 0)
    # Beta is undefined at 0: a disabled method takes the other's alpha; its numbers are not used.
    blend = rng.beta(mixup or cutmix, mixup or cutmix, count)
    cut = rng.beta(cutmix or mixup, cutmix or mixup, count)
    boxes = _boxes(rng, cut, image_size)

    is_mixed = rng.random(count) < augment.mixup_prob
    is_cutmix &= is_mixed
    boxes[~is_cutmix] = 0
    outside = 1 - (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / (image_size[0] * image_size[1])
    lam = np.where(is_cutmix, outside, np.where(is_mixed, blend, 1.0))
    return Mixing(lam, boxes, is_cutmix)


def _boxes(rng: np.random.Generator, lam: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Boxes (n, 4) with share 1 - lam of the area, the image's aspect ratio and a uniform centre, clipped at the image's border."""
    edges = []
    for length in image_size:
        half = (length * np.sqrt(1 - lam)).astype(np.int32) // 2
        centre = rng.integers(0, length, size=len(lam), dtype=np.int32)
        edges += [np.maximum(centre - half, 0), np.minimum(centre + half, length)]
    return np.stack(edges, axis=1).astype(np.int32)


def local_rows(global_batch: int, group: int, parts: int, *, mixed: bool = True) -> np.ndarray:
    """The positions of the global batch in each of `parts` equal micro-batches: (parts, global_batch / parts) int64.

    Groups are consecutive runs of `group` positions. The pairs of partners are distributed in order. A micro-batch lists the
    first partners of its pairs and then the second ones in reverse order. So the reverse of a micro-batch always contains the
    partners, whether it holds a part of a group, one group (then in its natural order) or several.

    With `mixed=False` (nothing is mixed, so there are no partners) the rows are consecutive, and any sizes that divide are valid.
    """
    if min(global_batch, group, parts) < 1:
        raise UserError(f"global_batch {global_batch}, mixup_group {group} and {parts} micro-batches must all be 1 or more")
    if global_batch % parts:
        raise UserError(f"a global_batch of {global_batch} cannot be split into {parts} equal micro-batches")
    size = global_batch // parts
    if not mixed:
        return np.arange(global_batch).reshape(parts, size)
    _require_even(group)
    if global_batch % group:
        raise UserError(
            f"global_batch {global_batch} is not a multiple of mixup_group {group}: choose a mixup_group that divides it"
        )
    if size % 2:
        raise UserError(
            f"a micro-batch of {size} cannot hold whole pairs: choose an even batch_size, or turn mixup and cutmix off"
        )
    starts = np.arange(0, global_batch, group)[:, None]
    first = (starts + np.arange(group // 2)).reshape(parts, size // 2)
    second = (starts + group - 1 - np.arange(group // 2)).reshape(parts, size // 2)
    return np.concatenate([first, second[:, ::-1]], axis=1)


def _require_even(group: int) -> None:
    if group % 2:
        raise UserError(f"mixup_group is {group}: mixing pairs each sample with another, so it must be even")


def one_hot(labels: np.ndarray, num_classes: int, smoothing: float) -> np.ndarray:
    """Targets (B, num_classes) float32: smoothing / num_classes everywhere, plus 1 - smoothing at the label."""
    labels = np.asarray(labels)
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        raise UserError(f"labels run from {labels.min()} to {labels.max()}, but there are {num_classes} classes (from 0)")
    off = smoothing / num_classes
    targets = np.full((len(labels), num_classes), off, dtype=np.float32)
    targets[np.arange(len(labels)), labels] = 1.0 - smoothing + off
    return targets


def apply_mixup(
    images: np.ndarray, labels: np.ndarray, mixing: Mixing, num_classes: int, smoothing: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mixes a micro-batch with its reverse: images (B, C, H, W) float32 or uint8 **in place**, labels (B,), mixing of B rows.

    The image of row j becomes lam * image_j + (1 - lam) * image_{B-1-j}, or takes its box from there; uint8 is computed in float32
    and rounded, halves to even (`np.rint`, as timm's collate function does). Its target is lam * y_j + (1 - lam) * y_{B-1-j} with
    smoothed one-hot y. Returns (images, targets (B, num_classes) float32).

    Raises UserError if lengths differ, or if the middle sample of an odd batch would be mixed.
    """
    size = len(images)
    if not size == len(labels) == len(mixing):
        raise UserError(f"{size} images, {len(labels)} labels and a mixing of {len(mixing)} rows do not belong together")
    targets = one_hot(labels, num_classes, smoothing)
    if not mixing.mixes:
        return images, targets
    if size % 2:
        raise UserError(f"a batch of {size} cannot be mixed: choose an even batch_size, or turn mixup and cutmix off")
    original, weighted = np.empty_like(images[0]), np.empty_like(images[0])
    for j in range(size // 2):
        k = size - 1 - j
        original[...] = images[j]
        _mix(images[j], images[k], mixing, j, weighted)
        _mix(images[k], original, mixing, k, weighted)
    own = mixing.lam.astype(np.float32)[:, None]
    other = (1 - mixing.lam).astype(np.float32)[:, None]
    return images, targets * own + targets[::-1] * other


def _mix(image: np.ndarray, partner: np.ndarray, mixing: Mixing, row: int, weighted: np.ndarray) -> None:
    if mixing.is_cutmix[row]:
        top, bottom, left, right = mixing.box[row]
        image[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
    elif mixing.lam[row] != 1 and image.dtype == np.uint8:
        mix_rounded(image, partner, mixing.lam[row], 1 - mixing.lam[row])
    elif mixing.lam[row] != 1:
        image *= np.float32(mixing.lam[row])
        image += np.multiply(partner, np.float32(1 - mixing.lam[row]), out=weighted)
