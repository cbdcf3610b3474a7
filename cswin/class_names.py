"""Names of classes: those of ImageNet-1K, lists in files, and matching the classes of data with the outputs of a checkpoint."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from cswin.data.sources.source import listed
from cswin.errors import UserError


@functools.cache
def imagenet_words() -> dict[str, str]:
    """The 1,000 classes of ImageNet-1K in the order of their indices: WNID -> words."""
    lines = files("cswin").joinpath("imagenet_classes.tsv").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


def words(name: str) -> str:
    """The readable name of a class: the words of an ImageNet WNID, any other name unchanged."""
    return imagenet_words().get(name, name)


def numbers(count: int) -> tuple[str, ...]:
    """Names of classes that have none: "0", "1", …"""
    return tuple(map(str, range(count)))


def read_class_names(path: Path) -> tuple[str, ...]:
    """Names in the order of the outputs, from a dataset.json, manifest.json or checkpoint, or from a text file: one name per line,
    in UTF-8 with or without a byte order mark; of a table (.tsv) the first column.

    Raises:
        UserError: if the file cannot be read or holds no names.
    """
    from cswin.checkpoint import load_checkpoint
    from cswin.tensor_file import SUFFIXES

    if path.suffix in SUFFIXES:
        return load_checkpoint(path).record.class_names
    try:
        text = path.read_text(encoding="utf-8-sig")  # accepts a byte order mark and the line ends of every system
        if path.suffix == ".json":
            return tuple(map(str, json.loads(text)["class_names"]))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as a list of class names ({error}); one name per line, in UTF-8") from error
    names = tuple(line.split("\t")[0].strip(" ") for line in text.split("\n"))
    names = tuple(name for name in names if name)
    if not names:
        raise UserError(f"{path}: holds no class names; one name per line is expected")
    return names


def match_classes(found: Sequence[str], known: Sequence[str], place: str | Path) -> tuple[dict[str, int], str | None]:
    """Match the classes of data with the outputs of a checkpoint.

    Classes are matched by name. If the checkpoint has the classes of ImageNet-1K and the data's classes are numbers, the numbers are
    ImageNet's indices.

    Args:
        found: names of the data's classes, without repetition.
        known: names of the checkpoint's outputs.
        place: the data, for error messages.

    Returns:
        Outputs by the names of the data's classes, and one line on what was done (None if names and order are the same). Classes that
        the checkpoint does not have are left out if the data have all of the checkpoint's classes.

    Raises:
        UserError: if some names of the data and some of the checkpoint have no counterpart, or if names are not unique.
    """
    outputs = {name: output for output, name in enumerate(known)}
    by_number = _imagenet_numbers(found, outputs)
    labels = by_number or {name: outputs[name] for name in found if name in outputs}
    twice = sorted(name for name, count in Counter(known).items() if count > 1 and name in labels)
    if twice:
        raise UserError(f"{place}: the checkpoint has several outputs of the name {listed(twice)}, so classes cannot be matched by "
                        "name; give them unique names: cswin convert-weights --class-names FILE")  # fmt: skip
    strange = [name for name in found if name not in labels]
    if strange and (len(labels) < len(known) or not labels):
        raise UserError(f"{place}: holds classes that the checkpoint does not have: {listed(sorted(strange))}; it has "
                        f"{listed(list(known))}{_hint(strange, known)}")  # fmt: skip
    if strange:
        return labels, (f"{place}: {len(strange)} of its {len(found)} classes are not among the checkpoint's {len(known)}: their images "
                        f"are left out ({listed(sorted(strange))})")  # fmt: skip
    how = "classes are matched as ImageNet's indices" if by_number else "classes are matched by name"
    if len(labels) < len(known):
        return (
            labels,
            f"{place}: {how}; the data have {len(labels)} of the checkpoint's {len(known)} classes, all outputs compete",
        )
    in_order = list(labels.values()) == list(range(len(known)))
    return labels, None if in_order and not by_number else f"{place}: {how}"


def _imagenet_numbers(found: Sequence[str], outputs: dict[str, int]) -> dict[str, int]:
    """Outputs by name if the checkpoint has the classes of ImageNet-1K and all names are their indices; otherwise empty."""
    wnids = list(imagenet_words())
    if outputs.keys() != set(wnids) or not all(re.fullmatch("0*[0-9]{1,3}", name) for name in found):
        return {}
    labels = {name: outputs[wnids[int(name)]] for name in found}
    return labels if len(set(labels.values())) == len(found) else {}  # "1" and "01" are not two classes


def _hint(strange: Sequence[str], known: Sequence[str]) -> str:
    if set(strange) <= imagenet_words().keys() and tuple(known) == numbers(len(known)):
        return "; the names of its outputs are numbers: `cswin convert-weights` names them, also in a converted file"
    return ""
