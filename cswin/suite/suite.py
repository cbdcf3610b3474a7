"""A suite: where the datasets are, and their evaluation with one network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from cswin.class_names import imagenet_words
from cswin.config.fields import FilePath, Section
from cswin.config.files import read_yaml
from cswin.config.problems import validated
from cswin.data.loader.labelled import Labelled, open_labelled
from cswin.data.sources.source import listed
from cswin.errors import UserError
from cswin.predictions import View
from cswin.suite.sets import CLASSES, IMAGES, SETS, TestSet, class_indices, real_hits, real_labels, validation_numbers

if TYPE_CHECKING:
    from cswin.evaluate import Evaluator

_PARTIAL = "get the rest, or set partial: true to judge what is there"


class Suite(Section):
    """The content of a suite's file. A dataset that is not given is not judged."""

    validation: FilePath | None = Field(None, description="ImageNet's validation set.")
    imagenet_v2: FilePath | None = Field(None, description="ImageNet-V2, matched frequency.")
    imagenet_a: FilePath | None = Field(None, description="ImageNet-A.")
    imagenet_r: FilePath | None = Field(None, description="ImageNet-R.")
    sketch: FilePath | None = Field(None, description="ImageNet-Sketch.")
    classes_from: FilePath | None = Field(None, description="Names of the classes of .mindrecord files.")
    real: bool = Field(True, description="Judge the validation set by ReaL's labels, too.")
    partial: bool = Field(False, description="Judge datasets of which images are missing, too.")


@dataclass(frozen=True)
class Score:
    """How many of the n images of a set are right."""

    test_set: TestSet
    n: int
    right1: int
    right5: int


def open_suite(file: Path, class_names: tuple[str, ...]) -> dict[str, Labelled]:
    """The datasets of a suite, by key, in the order of `IMAGES`. No image is read.

    Args:
        file: YAML with the keys of `Suite`.
        class_names: of the checkpoint.

    Raises:
        UserError: one line for each dataset that is missing, another one, or not complete; if the checkpoint has other classes.
    """
    if class_names != tuple(imagenet_words()):
        raise UserError(f"{file}: a suite judges checkpoints with the 1,000 classes of ImageNet-1K in their order (n01440764, n01443537, …), "
                        f"this one has {len(class_names):,}: {listed(list(class_names))}")  # fmt: skip
    suite: Suite = validated(Suite, read_yaml(file), f"{file}: ")
    sources, problems = {}, []
    for key in IMAGES:
        if path := getattr(suite, key):
            try:
                sources[key] = _opened(key, Path(path), suite, class_names)
            except UserError as error:
                problems.append(f"{file}: {key}: {error}")
    if problems:
        raise UserError("\n".join(problems))
    if not sources:
        raise UserError(f"{file}: gives no dataset; give one or more of {', '.join(IMAGES)}")
    return sources


def judge_suite(sources: Mapping[str, Labelled], evaluator: Evaluator, which: str) -> list[Score]:
    """The sets that the sources make possible, in the order of `SETS`; each image is decoded and classified once.

    Args:
        sources: from `open_suite`.
        evaluator: of the checkpoint.
        which: set of weights.
    """
    scores = []
    for key, source in sources.items():
        sets = [one for one in SETS if one.data == key and (source.names or not one.real)]
        subsets = dict.fromkeys(one.classes for one in sets)  # in the same order on all ranks, which gather them one by one
        found = evaluator(source, {str(s): View(which, class_indices(s) if s else None) for s in subsets})
        for one in sets:
            predictions = found[str(one.classes)]
            hits = (predictions.right1, predictions.right5)
            if one.real:
                numbers = validation_numbers(source.names())
                hits = real_hits(predictions, [real_labels()[numbers[i]] for i in predictions.positions.tolist()])
            if len(hits[0]):
                scores.append(Score(one, len(hits[0]), *(int(hit.sum()) for hit in hits)))
    return scores


def _opened(key: str, path: Path, suite: Suite, class_names: tuple[str, ...]) -> Labelled:
    classes_from = None
    if path.suffix == ".mindrecord" and path.is_file():
        if suite.classes_from is None:
            raise UserError(
                f"{path}: a .mindrecord does not know the names of its classes; give its dataset.json, or classes_from"
            )
        classes_from = Path(suite.classes_from)
    source = open_labelled(path, "val", class_names, classes_from)
    if source.images is None:
        raise UserError(f"{path}: is a file; give a folder of images or a dataset.json (an archive: extract it)")
    wanted = set(class_indices(CLASSES[key]).tolist() if key in CLASSES else range(len(class_names)))
    missing, strange = wanted - source.outputs, source.outputs - wanted
    if strange:
        names = listed([class_names[output] for output in sorted(strange)])
        raise UserError(
            f"{path} is another dataset: {len(strange)} of its classes do not belong here ({names}); give the right one"
        )
    if missing and not suite.partial:
        names = listed([class_names[output] for output in sorted(missing)])
        raise UserError(f"{path} lacks {len(missing)} of {len(wanted):,} classes ({names}); {_PARTIAL}")
    if source.images != IMAGES[key] and not suite.partial:
        raise UserError(f"{path} holds {source.images:,} images, it should hold {IMAGES[key]:,}; {_PARTIAL}")
    if not suite.real:
        return replace(source, names=None)
    if key == "validation":
        _require_numbers(path, source)
    return source


def _require_numbers(path: Path, source: Labelled) -> None:
    try:
        if source.names is None:
            raise UserError("it does not know them")
        validation_numbers(source.names())
    except UserError as error:
        raise UserError(f"{path}: ReaL's labels belong to names of image files, and {error}; give the folder, or a dataset.json "
                        "with its manifest, or set real: false") from error  # fmt: skip
