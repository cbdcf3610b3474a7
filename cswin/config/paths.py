"""The type of every path in a configuration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

_SNAKEMAKES = re.compile(r"[{}\x00-\x1f\x7f]|<[a-z][a-z0-9_]*>")  # wildcards, lines of its lock files, path variables


def _usable(path: str) -> str:
    """The one place where `~` is expanded; every path of a configuration goes through it."""
    try:
        path = str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        raise ValueError(f"there is no home directory for {Path(path).parts[0]}; write the path out") from None
    if found := _SNAKEMAKES.search(path):
        raise ValueError(f"{found[0]!r} in a path has a meaning for Snakemake; rename the folder or file, or link to it")
    return path


FilePath = Annotated[str, AfterValidator(_usable)]
