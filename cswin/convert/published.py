"""The weights that the authors have published: their names, addresses and published accuracy.

The addresses are those in the README of the authors' code, release v0.1.0. The authors give no checksums, so the SHA-256 of a file is
noted when it is used for the first time, and compared ever after.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cswin.errors import UserError
from cswin.layout import WEIGHTS, WeightsLayout
from cswin.model.variants import Architecture, variant

RELEASE = "https://github.com/microsoft/CSWin-Transformer/releases/download/v0.1.0"
PREFIX = "weights:"  # before a name in `pretrained`
FOLDER_VARIABLE, MIRROR_VARIABLE = "CSWIN_WEIGHTS", "CSWIN_WEIGHTS_MIRROR"


@dataclass(frozen=True)
class Published:
    """One published file.

    Attributes:
        name: of the file, without its suffix .pth.
        arch: the architecture, a name in `VARIANTS`.
        trained_on: the images.
        top1: on ImageNet's validation set, per cent, as the authors' README says.
        measured: top-1 and top-5 of the converted weights there, per cent, as PaddleClas evaluated them.
        classes: outputs of the head; None: not documented.
        sha256: of the file, where it is known.
    """

    name: str
    arch: str
    trained_on: str
    top1: float | None
    measured: tuple[float, float] | None
    classes: int | None = 1000
    sha256: str | None = None

    @property
    def file(self) -> str:
        """The name of the published file."""
        return f"{self.name}.pth"

    def architecture(self, classes: int) -> Architecture:
        """The network that the weights belong to, with as many outputs as are published, else with `classes`."""
        return variant(self.arch).replace(num_classes=self.classes or classes)


PUBLISHED = {
    weights.name: weights
    for weights in (
        Published("cswin_tiny_224", "cswin_64_12211_tiny_224", "1K", 82.8, (82.81, 96.28)),
        Published("cswin_small_224", "cswin_64_24322_small_224", "1K", 83.6, (83.58, 96.58)),
        Published("cswin_base_224", "cswin_96_24322_base_224", "1K", 84.2, (84.20, 96.92)),
        Published("cswin_base_384", "cswin_96_24322_base_384", "1K", 85.5, (85.50, 97.49)),
        Published("cswin_large_224", "cswin_144_24322_large_224", "22K, 1K", 86.5, (86.43, 97.99)),
        Published("cswin_large_384", "cswin_144_24322_large_384", "22K, 1K", 87.5, (87.48, 98.33)),
        Published("cswin_large_22k_224", "cswin_144_24322_large_224", "22K", None, None, classes=None),
    )
}

# By architecture: published top-1 and top-5 on ImageNet, in per cent.
ACCURACY = {weights.arch: weights.measured for weights in PUBLISHED.values() if weights.measured}


def find_published(name: str) -> Published:
    """The published weights of that name.

    Raises:
        UserError: if there are none; the message lists the names.
    """
    if name not in PUBLISHED:
        raise UserError(f"{name!r} is not the name of published weights; one of: {', '.join(PUBLISHED)}")
    return PUBLISHED[name]


def weights_layout(folder: Path | None = None) -> WeightsLayout:
    """Where published weights are kept: the given folder, else that of the environment variable, else `weights`."""
    return WeightsLayout(Path(folder or os.environ.get(FOLDER_VARIABLE) or WEIGHTS).expanduser())
