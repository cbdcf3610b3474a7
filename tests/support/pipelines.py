"""Training and evaluation transforms with the report's recipe, and changes by a test."""

from __future__ import annotations

from cswin.config.settings import Augment
from cswin.data.augment.transforms import TrainTransform
from cswin.data.images.evaluation import EvalTransform
from cswin.data.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

PLAIN = {
    "scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "interpolation": "bicubic", "hflip": 0.5, "rand_augment": None,
    "erase_prob": 0.0, "erase_mode": "pixel", "erase_count": 1,
}  # fmt: skip


def preprocessing(size: int, channels: int = 3, **changes) -> Preprocessing:
    """ImageNet's usual preprocessing, without the checks of a configuration."""
    return Preprocessing(
        size, **{"crop_ratio": 0.9, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "channels": channels, **changes}
    )


def evaluation(size: int, **changes) -> EvalTransform:
    """The evaluation transform; `changes` are fields of Preprocessing."""
    return EvalTransform(preprocessing(size, **changes))


def training(size: int, channels: int = 3, mean=IMAGENET_MEAN, std=IMAGENET_STD, **changes) -> TrainTransform:
    """The training transform; `changes` are keys of the section augment, which are not checked here."""
    return TrainTransform(preprocessing(size, channels, mean=mean, std=std), Augment.model_construct(**{**PLAIN, **changes}))
