"""The sources by their names in the configuration (data.source). Where a layout fits several of them, the first one counts."""

from __future__ import annotations

from cswin.data.sources.archive import Archive
from cswin.data.sources.auto import Auto
from cswin.data.sources.digits import Digits
from cswin.data.sources.folder import Folder
from cswin.data.sources.huggingface import HuggingFace
from cswin.data.sources.ilsvrc import Ilsvrc2012
from cswin.data.sources.kaggle import Kaggle
from cswin.data.sources.source import Source
from cswin.data.sources.webdataset import WebDataset
from cswin.data.sources.wnid_tars import WnidTars

_ALL = (Digits, Archive, Kaggle, Folder, Ilsvrc2012, HuggingFace, WebDataset, WnidTars, Auto)
SOURCES: dict[str, type[Source]] = {source.kind: source for source in _ALL}
INPUTS = tuple(dict.fromkeys(key for source in SOURCES.values() for key in source.inputs))
