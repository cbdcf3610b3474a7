"""Every layout gives the tree of the official files; interrupted anywhere it goes on; what is wrong is named with the remedy."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import image_layouts as layouts
import pytest
from image_layouts import CLASSES, INDEX, TREE, WORDS, kaggle_files, solution, write_parquet
from image_trees import image_bytes, read_tree, tar_bytes, write_tar, write_tree

from cswin.cli import main
from cswin.data.sources.extraction import extract
from cswin.data.sources.recognise import open_source, recognised
from cswin.data.sources.registry import SOURCES
from cswin.data.sources.wnid_tars import is_held_out
from cswin.errors import UserError
from cswin.progress import Console


def opened(folder: Path, data: dict):
    return open_source(data["source"], [folder / data[key] for key in SOURCES[data["source"]].inputs])


def extracted(folder: Path, data: dict, **options) -> dict:
    return extract(opened(folder, data), folder / "images", folder / "receipt.json", Console(), **options)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Every layout once, to be read only: its folder, its section data, and the tree that comes out."""
    folders = {layout: tmp_path_factory.mktemp(layout.__name__) for layout in layouts.ALL}
    return {layout: (folder, *layout(folder)) for layout, folder in folders.items()}


def path_of(folder: Path, data: dict) -> Path:
    return folder / next(data[key] for key in SOURCES[data["source"]].inputs)


def refused(folder: Path, source: str, path: str) -> str:
    """The message; nothing may look like a result."""
    with pytest.raises(UserError) as caught:
        extracted(folder, {"source": source, "path": path})
    assert not (folder / "images").exists() and not (folder / "receipt.json").exists()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("layout", layouts.NEW)
def test_every_image_comes_to_its_class(given, tmp_path, layout):
    folder, data, expected = given[layout]
    receipt = extract(opened(folder, data), tmp_path / "images", tmp_path / "receipt.json", Console())
    assert read_tree(tmp_path / "images") == expected
    assert sum(receipt["files"].values()) == len(expected)


@pytest.mark.parametrize("layout", layouts.NEW)
def test_reading_goes_on_at_any_image(given, layout):
    folder, data, expected = given[layout]
    entries = list(opened(folder, data).entries())
    positions = [entry.cursor["position"] for entry in entries]
    assert positions == sorted(positions) and len(entries) == len(expected)
    for stop in (1, 4, 8, 9, 15, 20, len(entries)):
        cursor = json.loads(json.dumps(entries[stop - 1].cursor))
        assert list(opened(folder, data).entries(cursor)) == entries[stop:]


@pytest.mark.parametrize("layout", layouts.ALL)
def test_auto_recognises_every_layout(given, layout):
    folder, data, expected = given[layout]
    path = path_of(folder, data)
    assert recognised(path).kind == data["source"]
    found = open_source("auto", [path])
    assert found.kind == data["source"] and {f"{e.split}/{e.class_name}/{e.name}": e.data for e in found.entries()} == expected


def test_auto_takes_the_folder_of_the_official_files(tmp_path):
    _, expected = layouts.official_files(tmp_path)
    found = open_source("auto", [tmp_path / "official"])
    assert {f"{e.split}/{e.class_name}/{e.name}": e.data for e in found.entries()} == expected


def test_other_files_beside_those_of_the_source(tmp_path):
    """What is set counts; auto prefers images that need no extraction."""
    layouts.shards(tmp_path)
    write_tree(tmp_path / "wds", {"train/cat/1.JPEG": b"x", "val/cat/1.JPEG": b"x"})
    assert recognised(tmp_path / "wds").kind == "folder"
    assert opened(tmp_path, {"source": "webdataset", "path": "wds"}).kind == "webdataset"


def test_auto_does_not_guess(tmp_path):
    write_tree(tmp_path / "notes", {"a.txt": b"x", "b/c.txt": b"y"})
    assert "the layout is not known (found: a.txt, b/c.txt); set data.source" in refused(tmp_path, "auto", "notes")
    assert "(found: nothing)" in refused(tmp_path, "auto", "gone")


@pytest.mark.parametrize("layout", layouts.ALL)
def test_another_layout_is_named(given, layout):
    """Whatever is set: the message says which source it is."""
    folder, data, _ = given[layout]
    for source in SOURCES.keys() - {"digits", "auto", "folder", data["source"]}:
        with pytest.raises(UserError) as caught:
            open_source(source, [path_of(folder, data)] * len(SOURCES[source].inputs))
        assert f"set data.source: {data['source']}, with data." in str(caught.value)


def test_a_layout_is_recognised_before_the_archive_is_read(tmp_path, monkeypatch):
    import cswin.data.sources.members as members

    data, _ = layouts.kaggle_tar(tmp_path)
    monkeypatch.setattr(members, "read_data", lambda *args: pytest.fail("no image is read"))
    assert "this is Kaggle's layout" in refused(tmp_path, "webdataset", data["path"])


class TestKaggle:
    def test_without_the_solution_nothing_is_read(self, tmp_path):
        data, _ = layouts.kaggle_tar(tmp_path)
        (tmp_path / "LOC_val_solution.csv").unlink()
        assert (
            "LOC_val_solution.csv is missing" in (said := refused(tmp_path, "kaggle", data["path"])) and "put it beside" in said
        )

    @pytest.mark.parametrize("top", ["kaggle/ILSVRC", "kaggle/ILSVRC/Data", "kaggle/ILSVRC/Data/CLS-LOC"])
    def test_any_of_its_folders(self, tmp_path, top):
        layouts.kaggle_folder(tmp_path)
        extracted(tmp_path, {"source": "kaggle", "path": top})
        assert read_tree(tmp_path / "images") == TREE

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda text: text.replace(b"n02119789", b"n09999999"), "names classes without training images: n09999999"),
            (
                lambda text: text.replace(b"val_00000002", b"val_00000099"),
                "'ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000002.JPEG': its class",
            ),
            (
                lambda text: text + b"ILSVRC2012_val_00000007,n01440764 1 2 3 4\n",
                "6 validation images, LOC_val_solution.csv names 7",
            ),
            (lambda text: text.replace(b"n01440764 1", b"fish 1"), "names no image and class"),
            (lambda text: b"", "names no validation images"),
        ],
    )
    def test_a_solution_that_does_not_fit(self, tmp_path, change, words):
        data, _ = layouts.kaggle_tar(tmp_path)
        (tmp_path / "LOC_val_solution.csv").write_bytes(change(solution(TREE)))
        assert words in refused(tmp_path, "kaggle", data["path"])

    def test_damaged_member_of_a_zip(self, tmp_path):
        layouts.kaggle_zip(tmp_path)
        data = (tmp_path / "challenge.zip").read_bytes()
        image = next(iter(TREE.values()))
        (tmp_path / "challenge.zip").write_bytes(data.replace(image[100:140], bytes(40)))
        assert "challenge.zip: is damaged or cut off ('ILSVRC/Data" in refused(tmp_path, "kaggle", "challenge.zip")
        (tmp_path / "challenge.zip").write_bytes(data[: len(data) // 2])
        assert "challenge.zip: is damaged or cut off" in refused(tmp_path, "kaggle", "challenge.zip")

    def test_training_images_without_class_folders(self, tmp_path):
        files = {"ILSVRC/Data/CLS-LOC/train/n01440764_1.JPEG": b"x", "LOC_val_solution.csv": solution(TREE)}
        write_tree(tmp_path / "kaggle", files)
        assert "its class is unknown, it is in no class folder" in refused(tmp_path, "kaggle", "kaggle")


class TestHuggingFace:
    def test_without_pyarrow(self, tmp_path, monkeypatch):
        data, _ = layouts.parquet(tmp_path)
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        assert "pip install -e '.[parquet]'" in refused(tmp_path, "huggingface", data["path"])

    def write(self, folder, rows, names=None, **options):
        for split in ("train", "validation"):
            write_parquet(folder / f"hub/{split}/0000.parquet", rows, names, **options)

    def test_names_of_other_classes(self, tmp_path):
        self.write(tmp_path, [(image_bytes(1, "PNG"), None, 1), (image_bytes(2), "a.jpg", 0)], ["cat", "old dog"])
        extracted(tmp_path, {"source": "huggingface", "path": "hub"})
        assert {name for name in read_tree(tmp_path / "images") if name.startswith("train")} == {
            "train/old dog/0000_0000000.png",
            "train/cat/0000_0000001.jpg",
        }

    def test_words_of_imagenet_are_wnids(self, tmp_path):
        self.write(tmp_path, [(b"x", None, 3)], list(WORDS.values()))
        extracted(tmp_path, {"source": "huggingface", "path": "hub"})
        assert list(read_tree(tmp_path / "images")) == [
            f"{split}/{list(WORDS)[3]}/0000_0000000.jpg" for split in ("train", "val")
        ]

    def test_names_that_cannot_be_folders(self, tmp_path):
        self.write(tmp_path, [(b"x", None, 1)], ["a/b", ".c"])
        extracted(tmp_path, {"source": "huggingface", "path": "hub"})
        assert "train/00001/0000_0000000.jpg" in read_tree(tmp_path / "images")

    @pytest.mark.parametrize(
        ("rows", "names", "options", "words"),
        [
            ([(b"x", None, 2)], ["cat", "dog"], {}, "0000.parquet: row 0: the label 2 is out of range (0 to 1)"),
            ([(b"x", "ILSVRC2012_val_00000001.JPEG", 1000)], None, {}, "the label 1000 is out of range (0 to 999)"),
            ([(b"x", None, -1)], None, {}, "the label -1 is out of range"),
            ([(None, "a.jpg", 1)], None, {}, "row 0: holds no image bytes"),
            ([(b"x", None, None)], None, {}, "row 0: holds no image bytes and no number as label"),
            ([(b"x", None, "../../x")], None, {}, "row 0: holds no image bytes and no number as label"),
            ([(b"x", None, 1)], None, {"columns": ("img", "label")}, "has no column image (it has img, label)"),
            ([], None, {}, "0 of 0 rows can be read"),
        ],
    )
    def test_rows_that_are_wrong(self, tmp_path, rows, names, options, words):
        self.write(tmp_path, rows, names, **options)
        assert words in refused(tmp_path, "huggingface", "hub")

    def test_damaged_parquet(self, tmp_path):
        layouts.parquet(tmp_path)
        file = tmp_path / "hub/data/train-00001-of-00002.parquet"
        file.write_bytes(file.read_bytes()[:-100])
        assert "train-00001-of-00002.parquet: is damaged or cut off" in refused(tmp_path, "huggingface", "hub")

    def test_pointers_of_git_lfs(self, tmp_path):
        layouts.parquet(tmp_path)
        file = tmp_path / "hub/data/train-00001-of-00002.parquet"
        file.write_bytes(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 12345\n"
        )
        assert "train-00001-of-00002.parquet: is a pointer of Git LFS" in refused(tmp_path, "huggingface", "hub")

    def test_damaged_column(self, tmp_path):
        layouts.parquet(tmp_path)
        file = tmp_path / "hub/data/train-00000-of-00002.parquet"
        data = file.read_bytes()
        file.write_bytes(data[:4] + b"\xff" * 200 + data[204:])
        assert "train-00000-of-00002.parquet: is damaged or cut off" in refused(tmp_path, "huggingface", "hub")

    def test_a_split_is_missing(self, tmp_path):
        layouts.hub_tars(tmp_path)
        (tmp_path / "hub/data/val_images.tar.gz").unlink()
        assert "no file is named after val; fetch all files" in refused(tmp_path, "huggingface", "hub")

    def test_archives_with_other_names(self, tmp_path):
        for name in ("train_images_0", "val_images"):
            write_tar(tmp_path / f"hub/{name}.tar.gz", {"n01440764_1.JPEG": b"x", "ILSVRC2012_val_00000001.JPEG": b"x"})
        assert "'ILSVRC2012_val_00000001.JPEG': its name does not end in its class" in refused(tmp_path, "huggingface", "hub")

    def test_empty_archive(self, tmp_path):
        for name in ("train_images_0", "val_images"):
            write_tar(tmp_path / f"hub/{name}.tar.gz", {})
        assert "train_images_0.tar.gz: holds no images" in refused(tmp_path, "huggingface", "hub")


class TestWebDataset:
    def write(self, folder, files, name="train"):
        write_tar(folder / f"wds/{name}-0000.tar", files)
        write_tar(folder / "wds/val-0000.tar", {"a.jpg": b"x", "a.cls": b"0"})
        return refused(folder, "webdataset", "wds")

    @pytest.mark.parametrize(
        ("files", "words"),
        [
            ({}, "train-0000.tar: holds no samples"),
            ({"a.jpg": b"x"}, "'a.jpg': its sample has no class (cls, json), only jpg"),
            ({"a.cls": b"1", "b.jpg": b"x"}, "'a.cls': its sample has no image"),
            ({"a.jpg": b"x", "a.cls": b"-1"}, "'a.cls': the label -1 is out of range"),
            ({"a.jpg": b"x", "a.cls": b"tench"}, "'a.cls': names no class: b'tench'; a number or a WNID is needed"),
            ({"a.jpg": b"x", "a.json": b'{"width": 3}'}, "'a.json': names no class"),
            ({"a.jpg": b"x", "a.json": b'{"label": '}, "'a.json': names no class"),
            (
                {"ILSVRC2012_val_00000001.jpg": b"x", "ILSVRC2012_val_00000001.cls": b"1000"},
                "the label 1000 is out of range (0 to 999)",
            ),
        ],
    )
    def test_samples_that_are_wrong(self, tmp_path, files, words):
        assert words in self.write(tmp_path, files)

    def test_other_classes_are_numbers_and_hidden_files_no_samples(self, tmp_path):
        files = {"._a.jpg": b"y", "x/a.png": b"x", "x/a.cls": b"7\n", "b.jpg": b"z", "b.json": b'{"cls": "n01440764"}'}
        for split in ("train", "val"):
            write_tar(tmp_path / f"wds/{split}/00000.tar", files)
        extracted(tmp_path, {"source": "webdataset", "path": "wds"})
        assert {name for name in read_tree(tmp_path / "images") if name.startswith("train")} == {
            "train/00007/00000_a.png",
            "train/n01440764/00000_b.jpg",
        }

    def test_shards_without_a_split(self, tmp_path):
        write_tar(tmp_path / "wds/0000.tar", {"a.jpg": b"x", "a.cls": b"0"})
        assert "no file is named after train and val" in refused(tmp_path, "webdataset", "wds")
        assert "holds no files of the kind .tar, .tar.gz, .tgz" in refused(tmp_path, "webdataset", "wds/*.zip")

    def test_damaged_shard(self, tmp_path):
        layouts.shards(tmp_path)
        shard = tmp_path / "wds/imagenet1k-train-0001.tar"
        shard.write_bytes(shard.read_bytes()[:3000])
        assert "imagenet1k-train-0001.tar: is damaged or cut off" in refused(tmp_path, "webdataset", "wds")


class TestWnidTars:
    def test_the_held_out_part_does_not_depend_on_what_else_is_there(self, tmp_path):
        _, expected = layouts.wnid_tars(tmp_path)
        (tmp_path / "fall11/n02119789.tar").unlink()
        receipt = extracted(tmp_path, {"source": "wnid_tars", "path": "fall11"})
        assert read_tree(tmp_path / "images") == {name: data for name, data in expected.items() if "n02119789" not in name}
        assert 1 <= receipt["held_out"] < 12

    def test_what_is_wrong(self, tmp_path):
        write_tar(tmp_path / "few/n01440764.tar", {"n01440764_1.JPEG": b"x"})
        assert "none of 1 images was drawn for validation" in refused(tmp_path, "wnid_tars", "few")
        write_tar(tmp_path / "few/n02119789.tar", {})
        assert "n02119789.tar: holds no images" in refused(tmp_path, "wnid_tars", "few")
        write_tree(tmp_path / "few/n02119789", {"a.JPEG": b"x"})
        assert "n02119789 is there as a tar and as a folder" in refused(tmp_path, "wnid_tars", "few")
        write_tree(tmp_path / "other", {"a.txt": b"x"})
        assert "holds no <WNID>.tar" in refused(tmp_path, "wnid_tars", "other")
        assert "is no folder" in refused(tmp_path, "wnid_tars", "gone")

    def test_the_only_image_of_a_class_is_for_training(self, tmp_path):
        name = next(name for name in (f"{n}.JPEG" for n in range(2000)) if is_held_out("n01440764", name))
        write_tar(tmp_path / "tars/n01440764.tar", {name: b"x"})
        write_tar(tmp_path / "tars/n02119789.tar", {"0.JPEG": b"x"})
        assert {entry.split for entry in open_source("wnid_tars", [tmp_path / "tars"]).entries()} == {"train"}

    def test_damaged_tar(self, tmp_path):
        layouts.wnid_tars(tmp_path)
        file = tmp_path / "fall11/n02119789.tar"
        file.write_bytes(tar_bytes({"n02119789_1.JPEG": b"x" * 2000})[:1200])
        assert "n02119789.tar: is damaged or cut off" in refused(tmp_path, "wnid_tars", "fall11")


def test_command_names_a_missing_path(tmp_path, capsys):
    arguments = ["data", "extract", "--source", "kaggle", "--output", str(tmp_path / "x"), "--receipt", str(tmp_path / "r")]
    assert main(arguments) == 2
    assert "--path: missing; source 'kaggle' needs the path" in capsys.readouterr().err
    layouts.own_folder(tmp_path)
    assert main([*arguments[:3], "auto", *arguments[4:], "--path", str(tmp_path / "mine")]) == 2
    assert "there is nothing to extract" in capsys.readouterr().err


def test_kaggle_files_are_those_of_the_classes():
    assert set(CLASSES) <= INDEX.keys() and len(kaggle_files(TREE)) == len(TREE) + 3
