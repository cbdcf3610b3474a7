"""The kinds of values that settings have."""

from __future__ import annotations

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


def _without_tilde(path: str) -> str:
    """The one place where `~` is expanded; every path of a configuration goes through it."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        raise ValueError(f"there is no home directory for {Path(path).parts[0]}; write the path out") from None


FilePath = Annotated[str, AfterValidator(_without_tilde)]


def partial(section: str) -> Any:
    """A mapping with some of the keys of a section; merged over the section and then validated like it."""
    return Annotated[dict[str, Any], WithJsonSchema({"type": "object", "x-section": section})]


def usual(value: Any, description: str, **more: Any) -> Any:
    """A key of the recipe: it has no default. `value` is that of config/imagenet/report_small_224.yaml; a refusal names it."""
    return Field(examples=[value], description=description, **more)


class Section(BaseModel):
    """A group of settings: unknown keys are errors, nothing is converted in silence."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
