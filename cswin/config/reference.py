"""The JSON schema and the reference page, generated from the typed settings."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from cswin.config.settings import Settings, Stage


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a configuration file, for Snakemake's `validate` and for editors."""
    schema = Settings.model_json_schema()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    definitions = schema["$defs"]
    for field in definitions["Stage"]["properties"].values():
        section = field.pop("x-section", None)
        if section:
            field.pop("type")
            field["$ref"] = f"#/$defs/{section}"
            # A stage gives only some keys of a section, so the requirement moves from the definition to the section itself.
            schema["properties"][section.lower()]["required"] = definitions[section].pop("required")
    return schema


def schema_text() -> str:
    """`json_schema` as the text of config/schema.json."""
    return json.dumps(json_schema(), indent=2) + "\n"


def reference_text() -> str:
    """The reference page as Markdown."""
    lines = [
        "# Settings",
        "",
        "Generated from `cswin/config/settings.py` and `runtime.py` by `cswin config --reference`; do not edit.",
        "",
        "A key without a default is required. The usual value is that of config/imagenet/report_small_224.yaml. The command line",
        "can change single keys of a section, with the same checks: `snakemake --config 'schedule={base_lr: 0.0005}'`.",
        "",
    ]
    definitions = json_schema()["$defs"]
    lines += _table("Top level", Settings, json_schema())
    for name, field in Settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            lines += _table(f"`{name}:`", kind, definitions[kind.__name__])
    lines += _table("`stages: {name: …}`", Stage, definitions["Stage"])
    return "\n".join(lines)


def _table(title: str, kind: type[BaseModel], schema: dict) -> list[str]:
    rows = [
        f"## {title}",
        "",
        " ".join((kind.__doc__ or "").split()),
        "",
        "| key | type | usual | default | meaning |",
        "|---|---|---|---|---|",
    ]
    for name, field in kind.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            continue
        usual = f"`{json.dumps(field.examples[0])}`" if field.examples else ""
        default = "" if field.is_required() else f"`{json.dumps(_plain(field.default))}`"
        rows.append(f"| `{name}` | {_type(schema['properties'][name])} | {usual} | {default} | {field.description} |")
    return [*rows, ""]


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


def _type(schema: dict) -> str:
    """Type and bounds of a field in a few words."""
    if "anyOf" in schema:
        return " or ".join("empty" if option.get("type") == "null" else _type(option) for option in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "$ref" in schema:
        return f"keys of {schema['$ref'].rsplit('/', 1)[1].lower()}"
    bounds = [
        f"{sign} {schema[key]}"
        for key, sign in (("exclusiveMinimum", ">"), ("minimum", "≥"), ("exclusiveMaximum", "<"), ("maximum", "≤"))
        if key in schema
    ]
    kind = schema.get("type", "")
    if kind == "array":
        kind = f"list of {schema.get('maxItems', '')} {_type(schema['items'])}"
    return " ".join([kind, ", ".join(bounds)]).strip()
