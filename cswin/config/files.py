"""Configuration files as plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cswin.errors import UserError


class _Loader(yaml.SafeLoader):
    """Rejects a key that appears twice in a mapping; YAML's usual loader silently takes the last one."""

    def construct_mapping(self, node, deep=False):
        first: dict[Any, int] = {}
        for key_node, _ in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if isinstance(key, str) and key in first and key_node.tag != "tag:yaml.org,2002:merge":
                raise UserError(f"line {line}: {key!r} is given twice, first in line {first[key]}; keep one of the two")
            first[key if isinstance(key, str) else id(key_node)] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The values of a YAML file, by key.

    Raises:
        UserError: if the file cannot be read, is empty or not YAML, or has a key twice; the message names the file and the line.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that does not exist, 5,000 digits, 5,000 brackets
        raise UserError(f"{path}: not valid YAML: {error}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: {'is empty' if values is None else 'is no mapping of keys to values'}; write key: value")
    return values
