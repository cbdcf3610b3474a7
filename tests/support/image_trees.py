"""Small image datasets for tests, in every layout that the workflow takes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

WNIDS = ("n01440764", "n02119789", "n03000000")
# As in the real devkit the IDs are not in the order of the WNIDs.
ILSVRC_IDS = {"n02119789": 1, "n03000000": 2, "n01440764": 3}


def image_bytes(number: int, kind: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (40, 30), **options) -> bytes:
    """An image file with noise that depends on `number`."""
    noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def small_files(train: int = 6, val: int = 2, classes: tuple[str, ...] = WNIDS) -> dict[str, bytes]:
    """Path below the dataset's folder -> bytes, `train` and `val` images in each class."""
    files = {}
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            for number in range(count):
                seed = 10_000 * (split == "val") + 100 * label + number
                files[f"{split}/{name}/{name}_{number}.JPEG"] = image_bytes(seed)
    return files


def write_tree(folder: Path, files: dict[str, bytes]) -> Path:
    """The files as a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def read_tree(folder: Path) -> dict[str, bytes]:
    """The images of a folder; hidden files are left out."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def tar_bytes(files: dict[str, bytes], mode: str = "w", extra: list[tarfile.TarInfo] = ()) -> bytes:
    """The files as an archive, `extra` members without data at the end."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in extra:
            archive.addfile(member)
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes], extra: list[tarfile.TarInfo] = ()) -> Path:
    """The files as .tar or .tar.gz, according to the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(files, "w:gz" if path.name.endswith("gz") else "w", extra))
    return path


def meta_mat(train_images: dict[str, int], ids: dict[str, int]) -> bytes:
    """A meta.mat as in the devkit: a struct array of leaf synsets, and a parent synset that is not a class."""
    kinds = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "num_train_images")]
    rows = [(ids[wnid], wnid, f"thing {wnid}", "a thing", 0, count) for wnid, count in train_images.items()]
    rows.append((len(rows) + 1, "n00001740", "entity", "that which is", len(rows), 0))
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": np.array(rows, dtype=kinds).reshape(-1, 1)})
    return buffer.getvalue()


def write_ilsvrc(
    folder: Path, files: dict[str, bytes], *, ids: dict[str, int] = ILSVRC_IDS, labels: list[object] | None = None
) -> tuple[Path, Path, Path, dict[str, bytes]]:
    """The official files for the images of `files`.

    Returns:
        Train archive, val archive, devkit, and the expected tree after extraction.
    """
    expected, classes = {}, {}
    for name, data in files.items():
        split, wnid, image = name.split("/")
        if split == "train":
            classes.setdefault(wnid, {})[image] = data
            expected[name] = data
    val = [(name.split("/")[1], data) for name, data in files.items() if name.startswith("val/")]
    val = [val[row] for row in np.random.default_rng(3).permutation(len(val))]
    flat = {f"ILSVRC2012_val_{number:08d}.JPEG": data for number, (_, data) in enumerate(val, 1)}
    for (wnid, data), name in zip(val, flat, strict=True):
        expected[f"val/{wnid}/{name}"] = data
    lines = [ids[wnid] for wnid, _ in val] if labels is None else labels
    counts = {wnid: len(images) for wnid, images in classes.items()}
    kit = {
        "ILSVRC2012_devkit_t12/readme.txt": b"about",
        "ILSVRC2012_devkit_t12/data/meta.mat": meta_mat(counts, ids),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "".join(f"{line}\n" for line in lines).encode(),
    }
    return (
        write_tar(folder / "ILSVRC2012_img_train.tar", {f"{wnid}.tar": tar_bytes(images) for wnid, images in classes.items()}),
        write_tar(folder / "ILSVRC2012_img_val.tar", flat),
        write_tar(folder / "ILSVRC2012_devkit_t12.tar.gz", kit),
        expected,
    )
