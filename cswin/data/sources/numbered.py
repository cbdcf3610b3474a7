"""Names of classes and files where a source gives classes by number: those of ImageNet's official files where it can be."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cswin.class_names import imagenet_words
from cswin.errors import UserError

# A training image names its class; packagings append it once more, and to validation images as well.
_OFFICIAL = re.compile(r"((?:(n\d{8})_\d+|ILSVRC2012_val_\d{8}))(?:_(n\d{8}))?")


def official_name(stem: str) -> tuple[str, str | None] | None:
    """File name and WNID (None: its name does not tell) of an image of ImageNet, by a name without suffix; None: no such name."""
    match = _OFFICIAL.fullmatch(stem)
    return (f"{match[1]}.JPEG", match[3] or match[2]) if match else None


def place_image(stem: str, label: int | str, names: Sequence[str] | None, place: str) -> tuple[str, str | None]:
    """Class and file name of an image.

    Args:
        stem: name of its file, without suffix.
        label: number of its class, or a WNID.
        names: of the classes by number; None: unknown.
        place: for messages.

    Returns:
        The class: a WNID where the image's name or the label is one; for ImageNet's validation images that of the index; else the
        name, or the number with five digits. And the file name of ImageNet's official files; None for other images.

    Raises:
        UserError: for a number without a class.
    """
    official = official_name(stem)
    name, wnid = official or (None, None)
    if wnid or isinstance(label, str):
        return wnid or label, name
    if official:
        names = tuple(imagenet_words())
    if label < 0 or (names is not None and label >= len(names)):
        known = f"0 to {len(names) - 1}" if names else "0 and up"
        raise UserError(f"{place}: the label {label} is out of range ({known}); fetch the file again, or correct its labels")
    return names[label] if names else f"{label:05d}", name


def folder_names(names: Sequence[str]) -> tuple[str, ...] | None:
    """Names of classes as names of folders: the WNIDs where they are the words of ImageNet-1K; None where they cannot be."""
    words = imagenet_words()
    if len(names) == len(words) and all(
        a.split(",")[0] == b.split(",")[0] for a, b in zip(names[:3], words.values(), strict=False)
    ):
        return tuple(words)
    usable = all(
        name and "/" not in name and "\0" not in name and not name.startswith(".") and len(name) < 200 for name in names
    )
    return tuple(names) if usable and len(set(names)) == len(names) else None
