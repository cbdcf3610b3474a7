"""The same few images of ImageNet in every layout that a source reads: each gives the tree of the official files."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from image_trees import image_bytes, small_files, tar_bytes, write_ilsvrc, write_tar, write_tree

from cswin.class_names import imagenet_words

WORDS = imagenet_words()
CLASSES = ("n01440764", "n02119789", "n03000684")
INDEX = {wnid: number for number, wnid in enumerate(WORDS)}
Layout = tuple[dict[str, Any], dict[str, bytes]]  # section data, and the tree that comes out


def official_tree(train: int = 5, val: int = 2) -> dict[str, bytes]:
    """train/<wnid>/<wnid>_<n>.JPEG, and val/<wnid>/ILSVRC2012_val_<n>.JPEG in a drawn order."""
    files = small_files(train, val, CLASSES)
    flat = [(name.split("/")[1], data) for name, data in files.items() if name.startswith("val/")]
    order = np.random.default_rng(3).permutation(len(flat))
    tree = {name: data for name, data in files.items() if name.startswith("train/")}
    return tree | {f"val/{flat[row][0]}/ILSVRC2012_val_{n:08d}.JPEG": flat[row][1] for n, row in enumerate(order, 1)}


TREE = official_tree()


def _split(tree: dict[str, bytes], split: str) -> list[tuple[str, str, bytes]]:
    """(wnid, stem, bytes) of each image, not sorted by class."""
    found = [(name.split("/")[1], Path(name).stem, data) for name, data in tree.items() if name.startswith(split)]
    return found[::2] + found[1::2]


def kaggle_files(tree: dict[str, bytes]) -> dict[str, bytes]:
    """ILSVRC/, with what else is in there."""
    data = {"ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml": b"<annotation/>"}
    for split in ("train", "val"):
        for wnid, stem, image in _split(tree, split):
            data[f"ILSVRC/Data/CLS-LOC/{split}/{wnid + '/' if split == 'train' else ''}{stem}.JPEG"] = image
    return data | {
        "ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG": b"x",
        "ILSVRC/ImageSets/CLS-LOC/val.txt": b"x",
    }


def solution(tree: dict[str, bytes]) -> bytes:
    """LOC_val_solution.csv, as Kaggle writes it."""
    lines = [f"{stem},{wnid} 1 2 3 4 {wnid} 5 6 7 8 " for wnid, stem, _ in _split(tree, "val")]
    return "\n".join(["ImageId,PredictionString", *lines, ""]).encode()


def kaggle_folder(folder: Path) -> Layout:
    write_tree(folder / "kaggle", kaggle_files(TREE) | {"LOC_val_solution.csv": solution(TREE)})
    return {"source": "kaggle", "path": "kaggle"}, TREE


def kaggle_tar(folder: Path) -> Layout:
    write_tree(folder, {"LOC_val_solution.csv": solution(TREE)})
    write_tar(folder / "imagenet_object_localization_patched2019.tar.gz", kaggle_files(TREE))
    return {"source": "kaggle", "path": "imagenet_object_localization_patched2019.tar.gz"}, TREE


def kaggle_zip(folder: Path) -> Layout:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "challenge.zip", "w") as archive:
        for name, data in (kaggle_files(TREE) | {"LOC_val_solution.csv": solution(TREE)}).items():
            archive.writestr(name, data)
    return {"source": "kaggle", "path": "challenge.zip"}, TREE


def write_parquet(
    path: Path, rows: list[tuple[bytes, str | None, Any]], names: list[str] | None = None, columns=("image", "label")
):
    """A file of the Hub: rows of (image, path, label), three in each row group; the names of the classes in its metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.array(
        [{"bytes": data, "path": name} for data, name, _ in rows], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    table = pa.table({columns[0]: image, columns[1]: pa.array([label for *_, label in rows])})
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", **({"names": names} if names else {})}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=3)
    return path


def parquet(folder: Path) -> Layout:
    """As ILSVRC/imagenet-1k on the Hub, two files of train."""
    for split, name in (("train", "train"), ("val", "validation")):
        rows = [(data, f"{stem}_{wnid}.JPEG", INDEX[wnid]) for wnid, stem, data in _split(TREE, split)]
        parts = [rows[:8], rows[8:]] if split == "train" else [rows]
        for number, part in enumerate(parts):
            write_parquet(folder / f"hub/data/{name}-{number:05d}-of-{len(parts):05d}.parquet", part, list(WORDS.values()))
    write_parquet(folder / "hub/data/test-00000-of-00001.parquet", [(b"x", "ILSVRC2012_test_00000001.JPEG", -1)])
    return {"source": "huggingface", "path": "hub"}, TREE


def hub_tars(folder: Path) -> Layout:
    """train_images_0.tar.gz, …, whose file names end in the class."""
    for split in ("train", "val"):
        files = {f"{stem}_{wnid}.JPEG": data for wnid, stem, data in _split(TREE, split)}
        parts = [dict(list(files.items())[:8]), dict(list(files.items())[8:])] if split == "train" else [files]
        for number, part in enumerate(parts):
            write_tar(folder / f"hub/data/{split}_images{f'_{number}' if split == 'train' else ''}.tar.gz", part)
    write_tar(folder / "hub/data/test_images.tar.gz", {"ILSVRC2012_test_00000001.JPEG": b"x"})
    return {"source": "huggingface", "path": "hub/data/*.tar.gz"}, TREE


def shards(folder: Path) -> Layout:
    """WebDataset: class as .cls in the first shard, in .json in the others."""
    for split, name in (("train", "train"), ("val", "validation")):
        samples = _split(TREE, split)
        for number, part in enumerate([samples[:8], samples[8:]] if split == "train" else [samples]):
            files = {}
            for wnid, stem, data in part:
                cls = (f"{stem}.cls", str(INDEX[wnid]).encode())
                text = (f"{stem}.json", json.dumps({"label": INDEX[wnid], "filename": stem}).encode())
                files |= dict([cls, (f"{stem}.jpg", data)] if number == 0 else [(f"{stem}.jpg", data), text])
            write_tar(folder / f"wds/imagenet1k-{name}-{number:04d}.tar", files)
    return {"source": "webdataset", "path": "wds/imagenet1k-*.tar"}, TREE


def wnid_tars(folder: Path) -> Layout:
    """A tar for each class but the last, which is a folder; 400 small images, a few of them held out."""
    from cswin.data.sources.wnid_tars import is_held_out

    tree, kept = {}, image_bytes(1, size=(8, 8))
    for number, wnid in enumerate(CLASSES):
        names = [f"{wnid}_{n}.JPEG" for n in range(50 if number else 300)]
        files = {name: kept + f"{number} {name}".encode() for name in names}
        for name, data in files.items():
            tree[f"{'val' if is_held_out(wnid, name) and name != names[0] else 'train'}/{wnid}/{name}"] = data
        if number < 2:
            write_tar(folder / f"fall11/{wnid}.tar", files)
        else:
            write_tree(folder / f"fall11/{wnid}", files)
    return {"source": "wnid_tars", "path": "fall11"}, tree


def report_archive(folder: Path) -> Layout:
    write_tar(folder / "imagenet.tar.gz", {f"imagenet/{name}": data for name, data in TREE.items()})
    return {"source": "archive", "archive": "imagenet.tar.gz"}, TREE


def official_files(folder: Path) -> Layout:
    train, val, devkit, expected = write_ilsvrc(
        folder / "official", TREE, ids={w: n for n, w in enumerate(reversed(CLASSES), 1)}
    )
    paths = {"train_archive": train, "val_archive": val, "devkit": devkit}
    return {"source": "ilsvrc2012", **{key: str(path.relative_to(folder)) for key, path in paths.items()}}, expected


def own_folder(folder: Path) -> Layout:
    write_tree(folder / "mine", TREE)
    return {"source": "folder", "folder": "mine"}, TREE


NEW: list[Callable[[Path], Layout]] = [kaggle_folder, kaggle_tar, kaggle_zip, parquet, hub_tars, shards, wnid_tars]
ALL = [report_archive, official_files, own_folder, *NEW]


def remove(folder: Path, data: dict[str, Any]) -> None:
    """Take away what a layout is made of."""
    for key in ("path", "archive", "folder"):
        if (path := folder / data.get(key, "nothing")).exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


__all__ = [
    "ALL",
    "CLASSES",
    "INDEX",
    "NEW",
    "TREE",
    "WORDS",
    "kaggle_files",
    "official_tree",
    "solution",
    "tar_bytes",
    "write_parquet",
]
