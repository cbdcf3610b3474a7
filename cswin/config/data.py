"""Where the images come from and how they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from cswin.config.fields import Count, FilePath, Name, Section, usual
from cswin.data.sources.members import anchor
from cswin.data.sources.recognise import recognised
from cswin.data.sources.registry import SOURCES
from cswin.layout import DataLayout

Source = Literal[tuple(SOURCES)]


class Data(Section):
    """Source and storage of the images."""

    name: Name = usual("imagenet", description="Name of the dataset; its files are in `<directory>/<name>/`.")
    directory: FilePath = Field("data", description="Folder that contains all datasets.")
    source: Source = usual(
        "archive",
        description="`archive`: one tar or tar.gz with train/ and val/, one folder per class (the report's imagenet.tar.gz). "
        "`ilsvrc2012`: the three official files. `folder`: a folder with train/ and val/, one folder per class. `digits`: the "
        "handwritten digits of scikit-learn. `kaggle`, `huggingface`, `webdataset`, `wnid_tars` (ImageNet-22K): see docs/data.md. "
        "`auto`: the one that lies at `path`.",
    )
    path: FilePath | None = Field(
        None, description="Path of a file or folder, or a pattern (`/data/*.tar`), for the five sources named last."
    )
    archive: FilePath | None = Field(None, description="Path of the archive, for source `archive`.")
    train_archive: FilePath | None = Field(None, description="Path of ILSVRC2012_img_train.tar, for source `ilsvrc2012`.")
    val_archive: FilePath | None = Field(None, description="Path of ILSVRC2012_img_val.tar, for source `ilsvrc2012`.")
    devkit: FilePath | None = Field(None, description="Path of ILSVRC2012_devkit_t12.tar.gz, for source `ilsvrc2012`.")
    folder: FilePath | None = Field(None, description="Path of the folder, for source `folder`.")
    classes: Count = usual(1000, description="Number of classes in the dataset; another number is an error.")
    expect_train: Count | None = Field(None, description="Number of training images; another one is an error. Empty: any.")
    expect_val: Count | None = Field(None, description="Number of validation images; another one is an error. Empty: any.")
    shard_mb: Count = Field(1024, description="Target size of a MindRecord shard in MiB.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Seed of the order in which the images are stored.")
    on_bad_image: Literal["fail", "skip"] = Field(
        "fail",
        description="Treatment of files that cannot be decoded: `fail` lists them and stops, `skip` lists them and leaves them "
        "out.",
    )
    on_duplicate: Literal["report", "fail"] = Field(
        "report",
        description="Treatment of images with equal bytes, within train or val or in both: `report` counts them, in manifest.json and "
        "on the data page; `fail` lists them and stops.",
    )
    keep_images: bool = Field(True, description="Keep the extracted images after the conversion.")

    @property
    def layout(self) -> DataLayout:
        """Where the dataset's files are."""
        return DataLayout(Path(self.directory, self.name))

    @property
    def inputs(self) -> dict[str, str]:
        """By key, the files and folders that must exist before the images are listed."""
        paths = {key: getattr(self, key) for key in SOURCES[self.source].inputs}
        return {key: anchor(path) if key == "path" else path for key, path in paths.items()}

    @property
    def own_images(self) -> Path | None:
        """A folder of one's own, whose images stay where they are; None: the images are extracted."""
        if self.source == "folder":
            return Path(self.folder)
        if self.source != "auto":
            return None
        path = Path(self.path)
        if path.is_dir():
            source = recognised(path)
            in_place = source is not None and not source.extracts
        else:  # of a folder that is gone, its fingerprint tells that it was used in place
            in_place = not path.exists() and self.layout.fingerprint.exists()
        return path if in_place else None

    @property
    def images(self) -> Path:
        """The folder with the images, train/ and val/ by class."""
        return self.own_images or self.layout.images
