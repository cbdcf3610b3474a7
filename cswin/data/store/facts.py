"""JSON files that name their format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cswin.errors import UserError


def read_facts(path: Path, form: str, remedy: str) -> dict[str, Any]:
    """What such a file says, its key `format` left out.

    Raises:
        UserError: if it is missing, damaged or of another format than `form`; ends with the remedy.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {remedy}") from error
    if not isinstance(content, dict) or content.pop("format", None) != form:
        raise UserError(f"{path}: is not of format {form}; {remedy}")
    return content
