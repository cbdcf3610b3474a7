"""Shards: the original bytes, once each, read back by this project's reader and by MindSpore's; damage is found and named."""

import json
import pickle
import shutil
import sqlite3
import stat

import numpy as np
import pytest
from image_trees import WNIDS, image_bytes, read_tree, small_files, write_tree

import cswin.data.store.mindrecord as mindrecord
from cswin.data.sources.tree_writer import MARKER
from cswin.data.store.assemble import verify_dataset, write_dataset
from cswin.data.store.dataset import Dataset, read_rows
from cswin.data.store.manifest import load_summary
from cswin.data.store.mindrecord import convert_shard
from cswin.data.store.scan import ManifestOptions, write_manifest
from cswin.errors import UserError
from cswin.progress import Console

# 7 images of 600 KiB and 60 small ones: three shards of at most 2 MiB for training, more than one batch of rows, one for val.
FILES = small_files(60, 4) | {
    f"train/n02119789/large_{number}.png": image_bytes(number, "PNG", size=(512, 400)) for number in range(7)
}


def convert(folder, split, shard, **options):
    output = folder / "shards" / f"{split}-{shard:05d}.mindrecord"
    return convert_shard(
        folder / "images", folder / "manifest.csv.gz", folder / "manifest.json", (split, shard), output, Console(), **options
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset") / "flowers"
    write_tree(folder / "images", FILES)
    summary = write_manifest(
        folder / "images", folder / "manifest.csv.gz", folder / "manifest.json", Console(), ManifestOptions(shard_mb=2, seed=3)
    )  # fmt: skip
    for split, facts in summary.splits.items():
        for shard in range(facts.shards):
            convert(folder, split, shard)
    write_dataset(folder / "manifest.json", folder / "shards", folder / "dataset.json")
    return folder


@pytest.fixture
def copied(made, tmp_path):
    """A copy to damage."""
    return shutil.copytree(made, tmp_path / "copy")


def stored_names(split):
    """The images of a split by position: sorted by class and name, then permuted by the manifest's seed, 3."""
    names = sorted(name for name in FILES if name.startswith(split))
    order = np.random.Generator(np.random.PCG64([3, ("train", "val").index(split)])).permutation(len(names))
    return [names[row] for row in order]


def expected_rows(split):
    """(position, label, bytes) as the files have them."""
    return [(n, WNIDS.index(name.split("/")[1]), FILES[name]) for n, name in enumerate(stored_names(split))]


def problems(folder) -> dict[str, str]:
    return {
        check.shard.name: "; ".join(check.problems)
        for check in verify_dataset(folder / "dataset.json", Console())
        if check.problems
    }


def test_dataset(made):
    dataset = Dataset.load(made / "dataset.json")
    assert dataset.name == "flowers" and dataset.class_names == WNIDS
    assert dataset.manifest_hash == load_summary(made / "manifest.json").manifest_hash
    assert (dataset.images("train"), dataset.images("val")) == (187, 12)
    assert [path.name for path in dataset.shards("train")] == [f"train-{shard:05d}.mindrecord" for shard in range(3)]
    assert sorted(p.name for p in (made / "shards").iterdir() if p.name.startswith(".")) == []
    assert {stat.S_IMODE(p.stat().st_mode) & 0o044 for p in (made / "shards").iterdir()} == {0o044}


@pytest.mark.parametrize("split", ["train", "val"])
def test_rows_are_the_files_in_the_seeded_order(made, split):
    dataset = Dataset.load(made / "dataset.json")
    expected = expected_rows(split)
    assert list(read_rows(dataset, split, np.arange(dataset.images(split)))) == expected
    assert sorted(data for _, _, data in expected) == sorted(d for name, d in FILES.items() if name.startswith(split))


def test_mindspore_reads_the_same(made):
    import mindspore.dataset as ds

    dataset = Dataset.load(made / "dataset.json")
    files = [str(path) for path in dataset.shards("train")]
    reader = ds.MindDataset(files, columns_list=["index", "label", "image"], shuffle=False)
    rows = [(int(i), int(n), image.tobytes()) for i, n, image in reader.create_tuple_iterator(num_epochs=1, output_numpy=True)]
    assert sorted(rows) == expected_rows("train")
    reader = ds.MindDataset(files, columns_list=["index"], sampler=ds.SubsetSampler([5, 100, 3]))
    assert [int(i) for (i,) in reader.create_tuple_iterator(num_epochs=1, output_numpy=True)] == [5, 100, 3]


def test_any_order(made):
    dataset = Dataset.load(made / "dataset.json")
    expected = expected_rows("train")
    positions = np.random.default_rng(0).integers(0, 187, 500)
    assert list(read_rows(dataset, "train", positions)) == [expected[position] for position in positions]
    assert list(read_rows(dataset, "train", positions[:0])) == []


def test_reading_may_stop_early_and_go_to_another_process(made):
    dataset = pickle.loads(pickle.dumps(Dataset.load(made / "dataset.json")))
    rows = read_rows(dataset, "train", np.arange(187)[::-1])
    assert next(rows) == expected_rows("train")[186]
    rows.close()
    assert list(read_rows(pickle.loads(pickle.dumps(dataset)), "val", np.array([3]))) == [expected_rows("val")[3]]


def test_only_what_is_asked_for_is_read(made, monkeypatch):
    import cswin.data.store.dataset as module

    read, rows = module.read_image, []
    monkeypatch.setattr(module, "read_image", lambda *args: rows.append(args[2]) or read(*args))
    dataset = Dataset.load(made / "dataset.json")
    list(read_rows(dataset, "train", np.array([150, 2])))
    assert len(rows) == 2


@pytest.mark.parametrize("position", [-1, 187])
def test_position_out_of_range(made, position):
    with pytest.raises(UserError, match="positions 0 to 186"):
        list(read_rows(Dataset.load(made / "dataset.json"), "train", np.array([0, position])))


def test_unknown_split(made):
    with pytest.raises(UserError, match="no split 'test'; choose one of train, val"):
        Dataset.load(made / "dataset.json").images("test")


def test_dataset_may_be_moved(copied):
    dataset = Dataset.load(copied.rename(copied.with_name("moved")) / "dataset.json")
    assert len(list(read_rows(dataset, "train", np.arange(187)))) == 187


def test_converting_again_gives_the_same_receipt(copied):
    receipt = copied / "shards" / "train-00001.json"
    before = receipt.read_bytes()
    convert(copied, "train", 1)
    assert receipt.read_bytes() == before


def test_whole_dataset_is_good(made):
    assert problems(made) == {}


def damage(folder, change) -> dict[str, str]:
    change(folder / "shards" / "train-00001.mindrecord")
    return problems(folder)


def find_image(shard, position) -> tuple[int, bytes]:
    """Offset and bytes of an image in a shard."""
    data = expected_rows("train")[position][2]
    return shard.read_bytes().index(data), data


def flip_a_bit(shard):
    at, data = find_image(shard, 70)
    content = bytearray(shard.read_bytes())
    content[at + len(data) // 2] ^= 1
    shard.write_bytes(content)


def test_damaged_image_is_named(copied):
    found = damage(copied, flip_a_bit)
    name = stored_names("train")[70]
    assert list(found) == ["train-00001.mindrecord"]
    assert "content has changed" in found["train-00001.mindrecord"]
    assert f"1 images are not those of the manifest: {name}" in found["train-00001.mindrecord"]


def test_damage_is_found_without_the_manifest(copied):
    flip_a_bit(copied / "shards" / "train-00001.mindrecord")
    (copied / "manifest.csv.gz").unlink()
    assert problems(copied) == {"train-00001.mindrecord": "the content has changed"}
    (copied / "manifest.json").unlink()
    assert list(problems(copied)) == ["train-00001.mindrecord"]


def cut(shard):
    shard.write_bytes(shard.read_bytes()[:-100])


def change_label(shard):
    with sqlite3.connect(shard.with_name(shard.name + ".db")) as database:
        database.execute("UPDATE INDEXES SET label_0 = (label_0 + 1) % 3 WHERE ROW_ID = 4")
    database.close()


def label_out_of_range(shard):
    with sqlite3.connect(shard.with_name(shard.name + ".db")) as database:
        database.execute("UPDATE INDEXES SET label_0 = 7 WHERE ROW_ID = 4")
    database.close()


def zero_the_header(shard):
    content = shard.read_bytes()
    shard.write_bytes(bytes(64) + content[64:])


def wrong_index(shard):
    shutil.copy(shard.with_name("train-00002.mindrecord.db"), shard.with_name(shard.name + ".db"))


def overwrite_a_length(shard):
    at, _ = find_image(shard, 70)
    content = bytearray(shard.read_bytes())
    content[at - 8 : at] = bytes(8)
    shard.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda shard: shard.unlink(), "train-00001.mindrecord: No such file"),
        (lambda shard: shard.with_name(shard.name + ".db").unlink(), "train-00001.mindrecord.db: No such file"),
        (cut, "bytes instead of"),
        (zero_the_header, "cannot be read as MindRecord"),
        (change_label, "numbers of rows by label have changed"),
        (label_out_of_range, "labels outside of 0 to 2: [7]"),
        (overwrite_a_length, "1 rows cannot be read, the first is row"),
        (wrong_index, "rows from"),
    ],
)
def test_damage_is_found(copied, change, words):
    found = damage(copied, change)
    assert list(found) == ["train-00001.mindrecord"] and words in found["train-00001.mindrecord"]


@pytest.mark.parametrize("change", [cut, lambda shard: shard.unlink()])
def test_training_does_not_begin_on_a_broken_dataset(copied, change):
    change(copied / "shards" / "train-00001.mindrecord")
    with pytest.raises(UserError, match=r"train-00001\.mindrecord: .*convert again"):
        Dataset.load(copied / "dataset.json")


def test_reading_a_damaged_shard_is_an_error(copied):
    overwrite_a_length(copied / "shards" / "train-00001.mindrecord")
    dataset = Dataset.load(copied / "dataset.json")
    with pytest.raises(UserError, match=r"train-00001\.mindrecord: the row at byte"):
        list(read_rows(dataset, "train", np.arange(187)))


def test_dataset_of_another_manifest(copied):
    write_manifest(
        copied / "images", copied / "manifest.csv.gz", copied / "manifest.json", Console(), ManifestOptions(shard_mb=2, seed=4)
    )
    with pytest.raises(UserError, match="another manifest"):
        problems(copied)
    with pytest.raises(UserError, match="another manifest"):
        write_dataset(copied / "manifest.json", copied / "shards", copied / "dataset.json")


def test_dataset_needs_every_receipt(copied):
    (copied / "shards" / "val-00000.json").unlink()
    with pytest.raises(UserError, match=r"val-00000\.json"):
        write_dataset(copied / "manifest.json", copied / "shards", copied / "dataset.json")


def test_files_that_are_no_dataset(tmp_path):
    (tmp_path / "dataset.json").write_text("[]")
    for name in ("dataset.json", "nothing.json"):
        with pytest.raises(UserError, match=name):
            Dataset.load(tmp_path / name)


def test_interrupted_conversion_leaves_nothing_to_read(copied, monkeypatch):
    """Stopped after writing and before reading back: no file under the final names."""

    def stop(*args):
        raise KeyboardInterrupt

    shards = copied / "shards"
    shutil.rmtree(shards)
    monkeypatch.setattr(mindrecord, "_read_back", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(copied, "train", 0)
    assert list(shards.iterdir()) == []


def test_leftovers_of_a_kill_do_not_matter(copied):
    aside = copied / "shards" / ".train-00000.partial"
    write_tree(aside, {"train-00000.mindrecord": b"half", "train-00000.mindrecord.db": b"half"})
    convert(copied, "train", 0)
    assert not aside.exists() and problems(copied) == {}


@pytest.mark.parametrize("data", [b"", b"other"])
def test_image_that_changed_after_the_manifest(copied, data):
    """Also one of the same length, which reading back finds by its hash."""
    name = next(iter(FILES))
    new = data if not data else FILES[name][:-3] + b"xyz"
    (copied / "images" / name).write_bytes(new)
    shards = load_summary(copied / "manifest.json").splits["train"].shards
    errors = []
    for shard in range(shards):
        try:
            convert(copied, "train", shard)
        except UserError as error:
            errors.append((shard, str(error)))
    assert len(errors) == 1 and name in errors[0][1] and "changed since the manifest" in errors[0][1]
    assert not (copied / "shards" / f"train-{errors[0][0]:05d}.json").exists()


def test_images_that_are_gone(copied):
    shutil.rmtree(copied / "images")
    with pytest.raises(UserError, match="extract again"):
        convert(copied, "train", 0)


def test_wrong_requests(copied):
    with pytest.raises(UserError, match="train has no shard 3: they go from 0 to 2"):
        convert(copied, "train", 3)
    with pytest.raises(UserError, match=r"ends in \.mindrecord"):
        convert_shard(copied / "images", copied / "m", copied / "manifest.json", ("train", 0), copied / "x.rec", Console())


def test_image_larger_than_a_usual_page(tmp_path):
    """MindSpore's default page is 32 MiB."""
    large = image_bytes(1, "BMP", size=(4000, 3000))
    assert len(large) > 1 << 25
    files = small_files(2, 1) | {"train/n02119789/large.bmp": large}
    write_tree(tmp_path / "images", files)
    write_manifest(tmp_path / "images", tmp_path / "manifest.csv.gz", tmp_path / "manifest.json", Console())
    convert(tmp_path, "train", 0)
    convert(tmp_path, "val", 0)
    dataset = write_dataset(tmp_path / "manifest.json", tmp_path / "shards", tmp_path / "dataset.json")
    rows = {data for _, _, data in read_rows(dataset, "train", np.arange(7))}
    assert rows == {data for name, data in files.items() if name.startswith("train")}


def test_extracted_images_are_removed_when_all_is_there(copied):
    (copied / "images" / MARKER).write_text(json.dumps({}))
    write_dataset(copied / "manifest.json", copied / "shards", copied / "dataset.json", copied / "images")
    assert not (copied / "images").exists() and problems(copied) == {}
    write_dataset(copied / "manifest.json", copied / "shards", copied / "dataset.json", copied / "images")


def test_images_stay_when_a_shard_is_missing(copied):
    (copied / "images" / MARKER).write_text(json.dumps({}))
    (copied / "shards" / "train-00001.mindrecord").unlink()
    with pytest.raises(UserError, match="train-00001"):
        write_dataset(copied / "manifest.json", copied / "shards", copied / "dataset.json", copied / "images")
    assert read_tree(copied / "images") == FILES


def test_images_of_somebody_else_are_never_removed(copied):
    with pytest.raises(UserError, match="is not removed"):
        write_dataset(copied / "manifest.json", copied / "shards", copied / "dataset.json", copied / "images")
    assert read_tree(copied / "images") == FILES
