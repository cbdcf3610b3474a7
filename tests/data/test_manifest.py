"""The manifest: one true row per image, a summary that depends on content alone, bad datasets refused with the list."""

import csv
import gzip
import hashlib
import io
import json

import numpy as np
import pytest
from image_trees import WNIDS, image_bytes, small_files, write_tree
from PIL import Image

from cswin.data.store.duplicates import find_duplicates
from cswin.data.store.manifest import Row, SplitRows, load_summary, read_manifest, shard_rows, storage_order
from cswin.data.store.scan import Expected, ManifestOptions, check_image, write_manifest
from cswin.errors import BadImage, UserError
from cswin.progress import Console


def manifest(folder, **options):
    """Write the manifest of folder/images; its summary."""
    return write_manifest(
        folder / "images", folder / "manifest.csv.gz", folder / "manifest.json", Console(), ManifestOptions(**options)
    )  # fmt: skip


def refused(folder, **options) -> str:
    with pytest.raises(UserError) as caught:
        manifest(folder, **options)
    assert not (folder / "manifest.json").exists() and not (folder / "manifest.csv.gz").exists()
    return str(caught.value)


def exif_broken() -> bytes:
    data = image_bytes(1, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage")
    assert b"garbage" in data
    return data


# What ImageNet is known for: a PNG and CMYK JPEGs under .JPEG names, broken EXIF.
ODD = {
    "PNG": image_bytes(1, "PNG"),
    "CMYK": image_bytes(1, mode="CMYK"),
    "grey": image_bytes(1, mode="L"),
    "palette": image_bytes(1, "PNG", "P"),
    "progressive": image_bytes(1, progressive=True),
    "EXIF": exif_broken(),
}


def test_rows_say_what_the_files_are(tmp_path):
    files = small_files(3, 1)
    files["train/n01440764/n01440764_0.JPEG"] = image_bytes(5, size=(17, 23))
    write_tree(tmp_path / "images", files)
    manifest(tmp_path)
    with gzip.open(tmp_path / "manifest.csv.gz", "rt", newline="") as text:
        rows = list(csv.DictReader(text))
    assert sorted(row["path"] for row in rows) == sorted(files)
    assert [row["path"].partition("/")[0] for row in rows] == ["train"] * 9 + ["val"] * 3
    for row in rows:
        data = files[row["path"]]
        assert row["class"] == row["path"].split("/")[1]
        assert int(row["label"]) == WNIDS.index(row["class"])
        assert (int(row["width"]), int(row["height"])) == Image.open(io.BytesIO(data)).size
        assert (int(row["bytes"]), row["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert [(row["width"], row["height"]) for row in rows if row["path"].endswith("n01440764/n01440764_0.JPEG")][0] == (
        "17",
        "23",
    )


def test_summary(tmp_path):
    files = small_files(3, 1)
    del files["train/n02119789/n02119789_1.JPEG"]
    write_tree(tmp_path / "images", files)
    summary = manifest(tmp_path, seed=5, shard_mb=1)
    assert summary == load_summary(tmp_path / "manifest.json")
    assert summary.class_names == WNIDS and summary.splits["train"].counts == (3, 2, 3) and summary.splits["val"].images == 3
    train = {name: len(data) for name, data in files.items() if name.startswith("train")}
    assert (summary.splits["train"].bytes, summary.splits["train"].largest) == (sum(train.values()), max(train.values()))
    with gzip.open(tmp_path / "manifest.csv.gz") as text:
        assert hashlib.sha256(text.read()).hexdigest() == summary.rows_sha256


def test_content_alone_decides(tmp_path):
    """Not the threads, not the dates, not the folder: the same bytes for both files."""
    results = set()
    for number, workers in enumerate((1, 2, 5)):
        folder = tmp_path / str(number)
        write_tree(folder / "images", dict(reversed(small_files(40, 1).items())))
        manifest(folder, workers=workers)
        results.add((folder / "manifest.json").read_bytes() + (folder / "manifest.csv.gz").read_bytes())
    assert len(results) == 1


def test_hash_follows_images_labels_and_order_but_not_the_shard_size(tmp_path):
    files = small_files(2, 1)
    write_tree(tmp_path / "images", files)
    first = manifest(tmp_path).manifest_hash
    assert manifest(tmp_path, shard_mb=7).manifest_hash == first
    assert manifest(tmp_path, seed=1).manifest_hash != first
    write_tree(tmp_path / "images", {"train/n01440764/n01440764_0.JPEG": image_bytes(77)})
    assert manifest(tmp_path).manifest_hash != first


def test_summary_stays_small(tmp_path):
    """A thousand classes as in ImageNet, in proportion."""
    write_tree(tmp_path / "images", small_files(1, 1, tuple(f"n{number:08d}" for number in range(300))))
    manifest(tmp_path)
    assert (tmp_path / "manifest.json").stat().st_size / 300 * 1000 < 100_000


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", ODD)
def test_odd_images_are_good(kind):
    kinds = {"PNG": "PNG RGB", "CMYK": "JPEG CMYK", "grey": "JPEG L", "palette": "PNG P"}
    assert check_image(ODD[kind]) == (kinds.get(kind, "JPEG RGB"), 40, 30)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("left", [0, 1, 10, 0.3, 0.6, 0.9, 0.99])
def test_cut_off_images_are_bad(kind, left):
    data = ODD[kind]
    if kind in ("PNG", "palette") and left == 0.99:
        left = 0.98  # the end mark of a PNG holds nothing of the image
    with pytest.raises(BadImage):
        check_image(data[: left if isinstance(left, int) else int(left * len(data))])


def test_check_agrees_with_the_decoder_of_the_training():
    """Wherever a JPEG is cut, both find it or both do not."""
    from cswin.data.images.decode import decode_rgb

    data = image_bytes(3, size=(64, 48), quality=60)
    for end in range(len(data) - 200, len(data) + 1):
        verdicts = set()
        for check in (check_image, decode_rgb):
            try:
                check(data[:end])
                verdicts.add("good")
            except BadImage:
                verdicts.add("bad")
        assert len(verdicts) == 1, end


def bad_dataset(folder):
    files = small_files(4, 2)
    bad = {"train/n01440764/n01440764_2.JPEG": b"", "train/n03000000/n03000000_0.JPEG": b"<html>",
           "val/n02119789/n02119789_1.JPEG": files["val/n02119789/n02119789_1.JPEG"][:500]}  # fmt: skip
    write_tree(folder / "images", files | bad)
    return files, list(bad)


def test_bad_images_fail_with_the_list(tmp_path):
    _, bad = bad_dataset(tmp_path)
    message = refused(tmp_path, report=tmp_path / "bad.csv", workers=2)
    assert "3 bad images" in message and all(name in message for name in bad)
    rows = list(csv.reader((tmp_path / "bad.csv").open(newline="")))
    assert rows[0] == ["path", "reason"] and [row[0] for row in rows[1:]] == bad and all(len(row[1]) > 10 for row in rows[1:])


def test_bad_images_skipped_are_reported(tmp_path, capsys):
    files, bad = bad_dataset(tmp_path)
    summary = manifest(tmp_path, on_bad_image="skip", report=tmp_path / "bad.csv")
    assert summary.skipped == 3 and summary.splits["train"].counts == (3, 4, 3) and summary.splits["val"].counts == (2, 1, 2)
    paths = [row.path for row in read_manifest(tmp_path / "manifest.csv.gz", summary)]
    assert sorted(paths) == sorted(set(files) - set(bad))
    assert len(paths) == 15 and all(path.startswith("train/") for path in paths[:10])
    assert len((tmp_path / "bad.csv").read_text().splitlines()) == 4
    assert "3 bad images left out" in capsys.readouterr().err


def test_report_without_bad_images(tmp_path):
    write_tree(tmp_path / "images", small_files(1, 1))
    manifest(tmp_path, report=tmp_path / "bad.csv")
    assert (tmp_path / "bad.csv").read_text().split() == ["path,reason"]


def test_class_with_bad_images_alone(tmp_path):
    files = {name: b"" if name.startswith("train/n03") else data for name, data in small_files(2, 1).items()}
    write_tree(tmp_path / "images", files)
    assert "classes with bad images alone: train/n03000000" in refused(tmp_path, on_bad_image="skip")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"empty": ["train/n04", "val/n01440764x"]}, "val: has classes that train lacks: n01440764x"),
        ({"empty": ["train/n04", "train/n05"]}, "classes without images: train/n04, train/n05"),
        ({"files": {"val/zebra/1.JPEG": image_bytes(1)}}, "val: has classes that train lacks: zebra"),
        ({"files": {"train/n01440764/more/1.JPEG": image_bytes(1)}}, "folders inside of class folders: train/n01440764/more"),
        ({"files": {"train/labels.txt": b"x"}}, "train: has files beside its class folders: labels.txt"),
        ({"options": {"expected": Expected(train=7)}}, "train: holds 6 images, promised are 7 (data.expect_train)"),
        ({"options": {"expected": Expected(val=50_000)}}, "val: holds 3 images, promised are 50,000 (data.expect_val)"),
        ({"options": {"expected": Expected(classes=2)}}, "has 3 classes (n01440764, n02119789, n03000000), promised are 2"),
    ],
)
def test_wrong_datasets_are_refused(tmp_path, change, words):
    images = write_tree(tmp_path / "images", small_files(2, 1) | change.get("files", {}))
    for folder in change.get("empty", []):
        (images / folder).mkdir()
    assert words in refused(tmp_path, **change.get("options", {}))


@pytest.mark.parametrize("missing", ["", "train", "val"])
def test_missing_folders(tmp_path, missing):
    files = {name: data for name, data in small_files(1, 1).items() if missing and not name.startswith(missing)}
    write_tree(tmp_path / "images", files)
    assert str(tmp_path / "images" / (missing or "train")) in refused(tmp_path)


def test_promise_counts_bad_images_too(tmp_path):
    """1,281,167 are promised by the archive, not by the decoder."""
    bad_dataset(tmp_path)
    assert manifest(tmp_path, on_bad_image="skip", expected=Expected(12, 6, 3)).splits["train"].images == 10


def test_hidden_files_are_no_images(tmp_path):
    files = small_files(2, 1)
    write_tree(tmp_path / "images", files | {"train/.x": b"", "train/n01440764/.DS_Store": b"", ".marker": b""})
    assert manifest(tmp_path).splits["train"].images == 6


def test_names_that_need_quotes(tmp_path):
    names = ('a "quoted", name.JPEG', "new\nline.JPEG", "größe.JPEG", "icon\r", "a\rb\u3000c.JPEG", "latin \udce4.JPEG")
    classes = ("x, b", "y\r", "\u65e5\u672c\u3000\u8a9e", "a&b <i>'")
    files = {f"{split}/{label}/{name}": image_bytes(1) for split in ("train", "val") for label in classes for name in names}
    write_tree(tmp_path / "images", files)
    summary = manifest(tmp_path)
    assert sorted(row.path for row in read_manifest(tmp_path / "manifest.csv.gz", summary)) == sorted(files)
    assert load_summary(tmp_path / "manifest.json").class_names == tuple(sorted(classes))


def test_class_name_that_is_not_utf8(tmp_path):
    write_tree(tmp_path / "images", small_files(1, 1, ("a", "b\udce4")))
    message = refused(tmp_path)
    assert "names of classes are not readable as UTF-8: ['b\\udce4']" in message


def test_file_name_that_is_not_utf8_in_a_log(tmp_path):
    write_tree(tmp_path / "images", small_files(2, 1) | {"train/n01440764/x\udce4.JPEG": b"no image"})
    with Console(tmp_path / "log") as console:
        files = tmp_path / "manifest.csv.gz", tmp_path / "manifest.json"
        write_manifest(tmp_path / "images", *files, console, ManifestOptions(on_bad_image="skip", report=tmp_path / "bad.csv"))
    assert "x\\udce4.JPEG" in (tmp_path / "log").read_text(encoding="utf-8")


@pytest.mark.parametrize("place", ["CLS-LOC", "ILSVRC"])
def test_kaggle_s_layout_as_a_folder(tmp_path, place):
    files = small_files(1, 0) | {"val/ILSVRC2012_val_00000001.JPEG": b"x"}
    place = tmp_path / "ILSVRC/Data/CLS-LOC" if place == "CLS-LOC" else tmp_path / "ILSVRC"
    write_tree(tmp_path / "ILSVRC/Data/CLS-LOC", files)
    with pytest.raises(UserError, match=r"LOC_val_solution\.csv") as caught:
        write_manifest(place, tmp_path / "manifest.csv.gz", tmp_path / "manifest.json", Console())
    assert "move them away" not in str(caught.value)


SEED_9 = [
    31, 19, 22, 25, 36, 2, 13, 39, 42, 18, 27, 21, 17, 15, 29, 6, 7, 12, 9, 43, 40, 20, 38, 14, 3, 37, 34, 44, 16, 35, 26, 41, 28,
    10, 23, 24, 8, 0, 5, 1, 11, 4, 32, 30, 33,
]  # fmt: skip


@pytest.mark.parametrize(
    ("seed", "split", "order"),
    [
        (0, "train", [9, 2, 7, 4, 5, 11, 0, 3, 6, 10, 8, 1]),
        (0, "val", [0, 7, 1, 11, 3, 10, 4, 6, 9, 8, 2, 5]),
        (3, "val", [0, 4, 11, 1, 2, 5, 10, 7, 9, 8, 6, 3]),
        (9, "train", SEED_9),
    ],
)
def test_order_of_storage_is_pinned(seed, split, order):
    """Another generator, or another NumPy, would train on other batches."""
    assert storage_order(seed, split, len(order)).tolist() == order


def test_shards_are_a_partition_in_the_seeded_order(tmp_path):
    write_tree(tmp_path / "images", small_files(15, 2))
    summary = manifest(tmp_path, seed=9)
    train = dict(summary.splits)["train"]
    splits = {"train": type(train)(**{**train.__dict__, "shards": 4}), "val": summary.splits["val"]}
    summary = type(summary)(**{**summary.__dict__, "splits": splits})
    stored, position = [], 0
    for shard in range(4):
        first, part = shard_rows(tmp_path / "manifest.csv.gz", summary, "train", shard)
        assert first == position and len(part) in (11, 12)
        position += len(part)
        stored += part
    names = sorted(small_files(15, 2))  # those of train come first
    assert [row.path for row in stored] == [names[row] for row in SEED_9]
    first, part = shard_rows(tmp_path / "manifest.csv.gz", summary, "val", 0)
    assert first == 0 and [row.path for row in part] == [names[45 + row] for row in (5, 2, 1, 4, 0, 3)]
    with pytest.raises(UserError, match="has no shard 4: they go from 0 to 3"):
        summary.shard_range("train", 4)


def test_order_mixes_classes_and_is_another_for_val(tmp_path):
    write_tree(tmp_path / "images", small_files(30, 30))
    summary = manifest(tmp_path, seed=1)
    rows = list(read_manifest(tmp_path / "manifest.csv.gz", summary))
    labels, images = [row.label for row in rows[:90]], [row.path.partition("/")[2] for row in rows]
    # 90 rows in runs of one class would change it twice; a random order changes it 60 times (standard deviation 4.4).
    assert 40 < np.count_nonzero(np.diff(labels)) < 80
    assert sorted(images[:90]) == sorted(images[90:]) and images[:90] != images[90:]


@pytest.mark.parametrize(("shard_mb", "shards"), [(1, 3), (2, 2), (1024, 1)])
def test_number_of_shards(tmp_path, shard_mb, shards):
    """600 KiB in each of 4 images."""
    files = {
        f"{split}/a/{number}.png": image_bytes(number, "PNG", size=(512, 400))
        for split in ("train", "val")
        for number in range(4)
    }
    write_tree(tmp_path / "images", files)
    assert manifest(tmp_path, shard_mb=shard_mb).splits["train"].shards == shards


def rewrite(path, change) -> None:
    with gzip.open(path, "rt", newline="") as text:
        rows = list(csv.reader(text))
    with gzip.open(path, "wt", newline="") as text:
        csv.writer(text, lineterminator="\n").writerows(change(rows))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[:-1], "does not belong to the summary"),
        (lambda rows: [rows[0], *rows[1:][::-1]], "does not belong to the summary"),
        (lambda rows: [*rows[:-1], [*rows[-1][:2], "3", *rows[-1][3:]]], "is outside of 0 to 2"),
        (lambda rows: [*rows[:-1], rows[-1][:4]], "line 10 is no row"),
        (lambda rows: [["a", "b"], *rows[1:]], "is no manifest"),
    ],
)
def test_rows_that_were_edited(tmp_path, change, words):
    write_tree(tmp_path / "images", small_files(2, 1))
    summary = manifest(tmp_path)
    rewrite(tmp_path / "manifest.csv.gz", change)
    with pytest.raises(UserError, match=words):
        list(read_manifest(tmp_path / "manifest.csv.gz", summary))


def test_rows_that_are_cut_off(tmp_path):
    write_tree(tmp_path / "images", small_files(2, 1))
    summary = manifest(tmp_path)
    path = tmp_path / "manifest.csv.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="cannot be read"):
        list(read_manifest(path, summary))


def test_summary_that_was_edited(tmp_path):
    write_tree(tmp_path / "images", small_files(2, 1))
    manifest(tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**content, "seed": 3}))
    with pytest.raises(UserError, match="was edited"):
        load_summary(tmp_path / "manifest.json")
    with pytest.raises(UserError, match="cannot be read"):
        load_summary(tmp_path / "nothing.json")


def doubled(folder):
    """One image of train is in val as well, under two names; two of train are equal."""
    files = small_files(4, 2)
    names = list(files)
    files[f"val/{WNIDS[0]}/leak.JPEG"] = files[f"val/{WNIDS[1]}/leak.JPEG"] = files[names[0]]
    files[f"train/{WNIDS[2]}/again,\r.JPEG"] = files[names[5]]
    write_tree(folder / "images", files)
    return names


def test_duplicates_are_counted(tmp_path, capsys):
    names = doubled(tmp_path)
    assert manifest(tmp_path).duplicates == {"train": 1, "val": 1, "train_in_val": 1}
    assert load_summary(tmp_path / "manifest.json").duplicates == {"train": 1, "val": 1, "train_in_val": 1}
    said = capsys.readouterr().err
    assert "1 images of train are also in val; 1 repeat another image of train, 1 of val" in said
    assert f"{names[0]} = val/{WNIDS[0]}/leak.JPEG = val/{WNIDS[1]}/leak.JPEG" in said


def test_duplicates_can_be_refused(tmp_path):
    doubled(tmp_path)
    assert "Remove them, or keep them with on_duplicate: report" in refused(tmp_path, on_duplicate="fail")


def test_no_duplicates(tmp_path, capsys):
    write_tree(tmp_path / "images", small_files(4, 2))
    assert manifest(tmp_path, on_duplicate="fail").duplicates == {"train": 0, "val": 0, "train_in_val": 0}
    assert "also in val" not in capsys.readouterr().err


def test_equal_parts_of_hashes_are_no_duplicates():
    rows = {split: SplitRows() for split in ("train", "val")}
    for split, sha in (("train", "a" * 64), ("val", "a" * 63 + "b"), ("train", "a" * 64)):
        rows[split].add(Row(f"{split}/x", "x", 0, 1, 1, 1, sha))
    assert find_duplicates(rows).counts == {"train": 1, "val": 0, "train_in_val": 0}
    assert find_duplicates({split: SplitRows() for split in ("train", "val")}).first == []


def test_a_summary_from_before_duplicates_were_counted(tmp_path):
    """It is read as it was, with the same hash."""
    write_tree(tmp_path / "images", small_files(4, 2))
    before, file = manifest(tmp_path), tmp_path / "manifest.json"
    content = json.loads(file.read_text())
    del content["duplicates"]
    file.write_text(json.dumps(content))
    assert load_summary(file).duplicates is None and load_summary(file).manifest_hash == before.manifest_hash
