"""A small converted dataset, made through manifest and MindRecord."""

from __future__ import annotations

from pathlib import Path

from image_trees import write_tree

from cswin.data.store.assemble import write_dataset
from cswin.data.store.dataset import Dataset
from cswin.data.store.mindrecord import convert_shard
from cswin.data.store.scan import ManifestOptions, write_manifest
from cswin.progress import Console


def converted(folder: Path, files: dict[str, bytes]) -> Dataset:
    """Convert `files` (path below train/ and val/ -> bytes) in `folder`."""
    images, rows, facts = write_tree(folder / "images", files), folder / "manifest.csv.gz", folder / "manifest.json"
    summary = write_manifest(images, rows, facts, Console(), ManifestOptions(shard_mb=1, seed=3))
    for split, part in summary.splits.items():
        for shard in range(part.shards):
            output = folder / "shards" / f"{split}-{shard:05d}.mindrecord"
            convert_shard(images, rows, facts, (split, shard), output, Console())
    write_dataset(facts, folder / "shards", folder / "dataset.json")
    return Dataset.load(folder / "dataset.json")
