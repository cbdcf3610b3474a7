"""What a configuration reads that no rule makes: the images' source and a pretrained checkpoint."""

from __future__ import annotations

from pathlib import Path

from cswin.config.settings import Settings

# data.source -> the keys of the data section that it needs, and what lies there.
SOURCES = {
    "archive": {"archive": "one tar or tar.gz with train/<class>/ and val/<class>/ (the report's imagenet.tar.gz)"},
    "ilsvrc2012": {
        "train_archive": "the official ILSVRC2012_img_train.tar",
        "val_archive": "the official ILSVRC2012_img_val.tar",
        "devkit": "the official ILSVRC2012_devkit_t12.tar.gz",
    },
    "folder": {"folder": "a folder with train/<class>/ and val/<class>/"},
    "digits": {},
}
SOURCE_KEYS = tuple(key for keys in SOURCES.values() for key in keys)


def missing_inputs(settings: Settings) -> list[str]:
    """A line for each file or folder that is needed next and is not there: key, path, what it is, remedy.

    A source is needed until its images are listed, a pretrained checkpoint until the first stage has ended.
    """
    data, lines = settings.data, []
    if not Path(data.directory, data.name, "manifest.json").exists():
        for key, what in SOURCES[data.source].items():
            path = getattr(data, key)
            if not Path(path).exists():
                lines.append(
                    f"data.{key}: {path} is missing: {what}; put it there, or name its place: --config 'data={{{key}: /path}}'"
                )
    first = next(iter(settings.stages))
    if settings.pretrained and not (
        Path(settings.pretrained).exists() or Path("results", settings.run, first, "record.json").exists()
    ):
        lines.append(
            f"pretrained: {settings.pretrained} is missing: a checkpoint of this project; convert the authors' weights (cswin "
            "convert-weights), or name its place: --config pretrained=/path"
        )
    return lines
