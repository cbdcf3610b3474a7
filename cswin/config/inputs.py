"""The paths of a configuration, and those among them that no rule makes: the source of the images and a pretrained checkpoint."""

from __future__ import annotations

from pathlib import Path

from cswin.config.settings import Settings
from cswin.convert.published import weights_layout
from cswin.data.sources.registry import SOURCES


def pretrained_file(settings: Settings) -> str | None:
    """The checkpoint from which the first stage starts; published weights have theirs in a folder of their own."""
    return str(weights_layout().checkpoint(settings.published)) if settings.published else settings.pretrained


def named_paths(settings: Settings) -> dict[str, str]:
    """The paths that jobs read or write, by key."""
    data = {key: getattr(settings.data, key) for key in ("directory", *SOURCES[settings.data.source].inputs)}
    named = {f"data.{key}": path for key, path in data.items()} | {"pretrained": pretrained_file(settings)}
    return {key: path for key, path in named.items() if path}


def missing_inputs(settings: Settings) -> list[str]:
    """A line for each file or folder that is needed next and is missing: key, path, description, remedy.

    A source is needed until its images are listed, a pretrained checkpoint until the first stage has ended.
    """
    data, lines = settings.data, []
    if not data.layout.manifest.exists():
        for key, path in data.inputs.items():
            if not Path(path).exists():
                what = SOURCES[data.source].inputs[key]
                lines.append(
                    f"data.{key}: {path} is missing: {what}; put it there, or name its place: --config 'data={{{key}: /path}}'"
                )
    first = next(iter(settings.stages))
    file = None if settings.published else settings.pretrained
    if file and not (Path(file).exists() or settings.layout.stage(first).record.exists()):
        lines.append(
            f"pretrained: {file} is missing: a checkpoint of this project; convert weights (cswin convert-weights), name its place: "
            "--config pretrained=/path, or take published ones (cswin weights): --config pretrained=weights:NAME"
        )
    return lines
