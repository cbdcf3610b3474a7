"""Messages about invalid values of a section: one line per problem, with key, value and remedy."""

from __future__ import annotations

import difflib
import json
import re
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from cswin.config.fields import Section
from cswin.config.settings import STAGE_SECTIONS, Settings, Stage
from cswin.errors import UserError

# Numbers that YAML 1.1 reads as text: with an exponent, but without a decimal point or without a sign of the exponent.
_EXPONENT = re.compile(r"([-+]?)(?=\.?\d)(\d*)\.?(\d*)[eE]([-+]?)(\d+)")


def validated(kind: type[Section], values: Any, prefix: str = ""):
    """A section made from plain values.

    Raises:
        UserError: one line per problem; keys begin with `prefix`.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(_lines(kind, error, prefix))) from None


def settings_problems(values: dict[str, Any]) -> list[str]:
    """All violations of types and bounds in a configuration, also in the sections of the stages."""
    lines = _problems(Settings, values, "")
    stages = values.get("stages")
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        for key, kind in STAGE_SECTIONS.items():
            part = stage.get(key) if isinstance(stage, dict) else None
            if isinstance(part, dict):
                lines += _problems(kind, part, f"stages.{name}.{key}.", whole=False)
    return lines


def _problems(kind: type[Section], values: Any, prefix: str, whole: bool = True) -> list[str]:
    try:
        kind.model_validate(values)
    except ValidationError as error:
        return _lines(kind, error, prefix, whole)
    return []


def _lines(kind: type[Section], error: ValidationError, prefix: str, whole: bool = True) -> list[str]:
    return [_explain(kind, problem, prefix) for problem in error.errors() if whole or problem["type"] != "missing"]


def _explain(kind: type[Section], problem: dict, prefix: str) -> str:
    place = [part for part in problem["loc"] if part != "[key]"]
    key, value = prefix + ".".join(map(str, place)), problem["input"]
    owner, field = _field(kind, place)
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key (value {value!r}); {_nearest(str(place[-1]), owner)}"
    if problem["type"] == "missing":
        return f"{key}: missing; {_what_to_write(field)}"
    remedy = ((field.json_schema_extra or {}).get("remedy") if field else None) or _number_in_text(value)
    return f"{key}: {value!r} is refused: {problem['msg'][0].lower() + problem['msg'][1:]}" + (f"; {remedy}" if remedy else "")


def _nearest(name: str, owner: type[Section] | None) -> str:
    """The known key most similar to an unknown one: in the same section, or else in another one."""
    here = list(owner.model_fields) if owner else []
    if close := difflib.get_close_matches(name, here, 1):
        return f"did you mean {close[0]!r}?"
    elsewhere = {key: section for section, kind in _sections().items() for key in kind.model_fields}
    if close := difflib.get_close_matches(name, elsewhere, 1, cutoff=0.8):
        return f"did you mean {elsewhere[close[0]]}.{close[0]}?"
    return f"known here: {', '.join(here)}"


def _sections() -> dict[str, type[Section]]:
    kinds = {name: field.annotation for name, field in Settings.model_fields.items()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Section)}


def _what_to_write(field: FieldInfo | None) -> str:
    """The remedy for a missing key: its usual value, if it has one, and its meaning."""
    if field is None:
        return "it must be given"
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
        return "every configuration shows this section; its keys and their usual values: config/README.md"
    return (f"usual: {json.dumps(field.examples[0])}; " if field.examples else "") + (field.description or "")


def _number_in_text(value: Any) -> str | None:
    """The remedy if a number was read as text."""
    if not isinstance(value, str):
        return None
    if found := _EXPONENT.fullmatch(value):
        sign, whole, fraction, direction, exponent = found.groups()
        number = f"{sign}{whole or 0}.{fraction or 0}e{direction or '+'}{exponent}"
        return f"YAML reads {value} as text, because a number with an exponent needs a decimal point and a sign: write {number}"
    try:
        float(value)
    except ValueError:
        return None
    return f"it is text: write {value} without quotes"


def _field(kind: type[Section] | None, place: list):
    """The section of a key, and the definition of the key, as far as the path is known."""
    owner, field = kind, None
    for depth, part in enumerate(place):
        field = owner.model_fields.get(part) if owner else None
        if depth + 1 < len(place):
            if part == "stages":
                owner = Section  # the stage's name comes next
            elif owner is Section:
                owner = Stage
            else:
                kinds = getattr(field, "annotation", None)
                owner = kinds if isinstance(kinds, type) and issubclass(kinds, Section) else None
    return owner, field
