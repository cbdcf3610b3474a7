"""The kinds of values that settings have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Epochs = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Triple = Annotated[list[float], Field(min_length=3, max_length=3)]
Range = Annotated[list[float], Field(min_length=2, max_length=2)]


_SNAKEMAKES = re.compile(r"[{}\x00-\x1f\x7f]|<[a-z][a-z0-9_]*>")  # wildcards, lines of its lock files, path variables


def _usable(path: str) -> str:
    """A path with `~` expanded. Every path of a configuration passes through this function."""
    try:
        path = str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        raise ValueError(f"there is no home directory for {Path(path).parts[0]}; write the path out") from None
    if found := _SNAKEMAKES.search(path):
        raise ValueError(f"{found[0]!r} in a path has a meaning for Snakemake; rename the folder or file, or link to it")
    return path


FilePath = Annotated[str, AfterValidator(_usable)]


def partial(section: str) -> Any:
    """A mapping with some keys of a section. It is merged into the section, and the result is validated."""
    return Annotated[dict[str, Any], WithJsonSchema({"type": "object", "x-section": section})]


def usual(value: Any, description: str, **more: Any) -> Any:
    """A key of the recipe, without a default. `value` is that of config/imagenet/report_small_224.yaml; error messages name it."""
    return Field(examples=[value], description=description, **more)


class Section(BaseModel):
    """A group of settings. Unknown keys are errors; no value is converted to another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
