"""The official ILSVRC2012 files in small: labels through the devkit, counts promised by it, going on after a kill."""

import gzip
import hashlib
import itertools

import numpy as np
import pytest
from image_trees import ILSVRC_IDS, WNIDS, meta_mat, read_tree, small_files, tar_bytes, write_ilsvrc, write_tar

import cswin.data.sources.ilsvrc as ilsvrc
from cswin.data.sources.extraction import extract as extract_source
from cswin.data.sources.ilsvrc import Ilsvrc2012, read_devkit
from cswin.errors import UserError
from cswin.progress import Console

FILES = small_files(5, 3)
KEYS = ("train", "val", "devkit")


def extract(train, val, devkit, folder, **options):
    return extract_source(Ilsvrc2012(train, val, devkit), folder / "images", folder / "receipt.json", Console(), **options)


def refused(train, val, devkit, folder) -> str:
    with pytest.raises(UserError) as caught:
        extract(train, val, devkit, folder)
    assert not (folder / "images").exists() and not (folder / "receipt.json").exists()
    return str(caught.value)


def test_images_come_to_their_classes(tmp_path):
    train, val, devkit, expected = write_ilsvrc(tmp_path, FILES)
    receipt = extract(train, val, devkit, tmp_path)
    assert read_tree(tmp_path / "images") == expected
    assert receipt["files"] == {f"{split}/{wnid}": n for split, n in (("train", 5), ("val", 3)) for wnid in WNIDS}


def test_devkit(tmp_path):
    devkit = write_ilsvrc(tmp_path, FILES)[2]
    kit = read_devkit(devkit)
    assert kit.train_images == dict.fromkeys(WNIDS, 5)  # the synset above the classes is none
    assert sorted(kit.val_wnids) == sorted(WNIDS * 3)


@pytest.mark.parametrize("reads", [1, 4, 5, 6, 14, 15, 16, 20])
def test_stopped_anywhere_it_goes_on_there(tmp_path, monkeypatch, reads):
    """Inside of a class, at its end, between the archives, in the second archive."""
    train, val, devkit, expected = write_ilsvrc(tmp_path, FILES)
    read, names = ilsvrc.read_data, []

    def stop_after(*args):
        names.append(args[2].name)
        # The devkit's two files are read by the same function.
        if len(names) > reads + 2:
            raise KeyboardInterrupt
        return read(*args)

    monkeypatch.setattr(ilsvrc, "read_data", stop_after)
    with pytest.raises(KeyboardInterrupt):
        extract(train, val, devkit, tmp_path, journal_seconds=0)
    assert not (tmp_path / "images").exists()
    names.clear()
    monkeypatch.setattr(ilsvrc, "read_data", lambda *args: names.append(args[2].name) or read(*args))
    extract(train, val, devkit, tmp_path, journal_seconds=0)
    assert len(names) - 2 == len(FILES) - reads
    assert read_tree(tmp_path / "images") == expected


@pytest.mark.parametrize("wrong", [0, 5, "n01440764", -1])
def test_ground_truth_out_of_range_is_listed(tmp_path, wrong):
    """4 would be the synset above the classes."""
    labels = [1, 2, 3, 1, wrong, 2, 3, 4, 3]
    message = refused(*write_ilsvrc(tmp_path, FILES, labels=labels)[:3], tmp_path)
    assert f"2 labels that are no ILSVRC2012_ID of a class in meta.mat (1 to 3): line 5: {wrong}, line 8: 4" in message


def test_ground_truth_of_another_length(tmp_path):
    message = refused(*write_ilsvrc(tmp_path, FILES, labels=[1, 2, 3] * 4)[:3], tmp_path)
    assert "holds 9 images, the devkit has labels for 12" in message


def test_more_images_than_labels(tmp_path):
    message = refused(*write_ilsvrc(tmp_path, FILES, labels=[1, 2, 3] * 2)[:3], tmp_path)
    assert "'ILSVRC2012_val_00000007.JPEG' is none of the 6 validation images" in message


def test_class_with_missing_images(tmp_path):
    files = dict(FILES)
    _, val, devkit, _ = write_ilsvrc(tmp_path, files)
    del files["train/n02119789/n02119789_3.JPEG"]
    short = write_ilsvrc(tmp_path / "short", files)[0]
    message = refused(short, val, devkit, tmp_path)
    assert "1 classes have other numbers" in message and "n02119789 4 of 5" in message


def test_class_that_is_missing(tmp_path):
    _, val, devkit, _ = write_ilsvrc(tmp_path, FILES)
    classes = {f"{wnid}.tar": tar_bytes({f"{wnid}_{n}.JPEG": b"x" for n in range(5)}) for wnid in WNIDS[1:]}
    assert "n01440764 0 of 5" in refused(write_tar(tmp_path / "short.tar", classes), val, devkit, tmp_path)


def test_class_that_the_devkit_lacks(tmp_path):
    _, val, devkit, _ = write_ilsvrc(tmp_path, FILES)
    train = write_tar(tmp_path / "t.tar", {"n09999999.tar": tar_bytes({"n09999999_1.JPEG": b"x"})})
    assert "'n09999999.tar' is no class of the devkit" in refused(train, val, devkit, tmp_path)


def test_archives_mixed_up(tmp_path):
    train, val, devkit, _ = write_ilsvrc(tmp_path, FILES)
    assert "is it ILSVRC2012_img_train.tar?" in refused(val, train, devkit, tmp_path)
    assert "is it ILSVRC2012_devkit_t12.tar.gz?" in refused(train, val, train, tmp_path)
    assert "is compressed" in refused(devkit, val, devkit, tmp_path)


def test_class_tar_without_end_mark(tmp_path):
    """The header that follows is that of the next class, and not an image of this one."""
    _, val, devkit, _ = write_ilsvrc(tmp_path, FILES)
    classes = {f"{wnid}.tar": tar_bytes({f"{wnid}_{n}.JPEG": b"x" * 512 for n in range(5)}) for wnid in WNIDS}
    classes["n01440764.tar"] = classes["n01440764.tar"][: 5 * 1024]
    message = refused(write_tar(tmp_path / "t.tar", classes), val, devkit, tmp_path)
    assert "'n01440764.tar' has no end mark" in message


@pytest.mark.parametrize("ids", [{**ILSVRC_IDS, "n02119789": 2}])
def test_id_twice(tmp_path, ids):
    kit = {"a/meta.mat": meta_mat(dict.fromkeys(WNIDS, 5), ids), "a/ILSVRC2012_validation_ground_truth.txt": b"1\n"}
    with pytest.raises(UserError, match="has a ILSVRC2012_ID twice: 2"):
        read_devkit(write_tar(tmp_path / "kit.tar.gz", kit))


def test_meta_mat_that_is_none(tmp_path):
    kit = {"a/meta.mat": bytes(np.arange(200, dtype=np.uint8)), "a/ILSVRC2012_validation_ground_truth.txt": b"1\n"}
    with pytest.raises(UserError, match=r"meta\.mat cannot be read"):
        read_devkit(write_tar(tmp_path / "kit.tar.gz", kit))


def publish(monkeypatch, *paths):
    """As if these were the published files."""
    facts = {
        key: (path.stat().st_size, hashlib.md5(path.read_bytes()).hexdigest()) for key, path in zip(KEYS, paths, strict=True)
    }
    monkeypatch.setattr(ilsvrc, "PUBLISHED", facts)


def test_published_files_are_checked_while_they_are_read(tmp_path, monkeypatch):
    *paths, expected = write_ilsvrc(tmp_path, FILES)
    publish(monkeypatch, *paths)
    assert extract(*paths, tmp_path)["md5_as_published"] == list(KEYS)
    assert read_tree(tmp_path / "images") == expected


def test_files_of_another_size_are_not_compared(tmp_path):
    *paths, _ = write_ilsvrc(tmp_path, FILES)
    assert extract(*paths, tmp_path)["md5_as_published"] == []


def damage(path):
    """Change a byte in the middle of an image, where nothing else sees it; pack the devkit again."""
    data = bytearray(path.read_bytes())
    if path.name.endswith("gz"):
        data = gzip.compress(gzip.decompress(data), 1)
    else:
        data[2000] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damaged", range(3))
def test_changed_bytes_in_a_published_file(tmp_path, monkeypatch, damaged):
    *paths, _ = write_ilsvrc(tmp_path, FILES)
    publish(monkeypatch, *paths)
    damage(paths[damaged])
    message = refused(*paths, tmp_path)
    assert f"{paths[damaged]}: its MD5 is" in message and "that of the published file is" in message


@pytest.mark.parametrize(("damaged", "read"), [(0, 4), (1, 18)])
def test_changed_bytes_before_an_interruption(tmp_path, monkeypatch, damaged, read):
    """The part that was extracted before is read again for the MD5."""
    *paths, _ = write_ilsvrc(tmp_path, FILES)
    publish(monkeypatch, *paths)
    cursor = [entry.cursor for entry in itertools.islice(Ilsvrc2012(*paths).entries(), read)][-1]
    assert len(list(Ilsvrc2012(*paths).entries(cursor))) == len(FILES) - read
    damage(paths[damaged])
    cursor = [entry.cursor for entry in itertools.islice(Ilsvrc2012(*paths).entries(), read)][-1]
    with pytest.raises(UserError, match=r"its MD5 is \w+, that of the published file is \w+; fetch it again"):
        list(Ilsvrc2012(*paths).entries(cursor))
