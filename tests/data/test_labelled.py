"""Evaluated folders and archives: the same rules as for training, and errors that name the file."""

import pytest
from converted import converted
from image_trees import small_files, write_tar, write_tree
from pipelines import evaluation

from cswin.config.runtime import Runtime
from cswin.data.loader.batches import EvalTask, eval_batches
from cswin.data.loader.labelled import open_labelled
from cswin.errors import UserError

CLASSES = ("a", "b")
FILES = small_files(2, 3, CLASSES)
ALL = slice(None)


def rows(path, split="val"):
    return list(open_labelled(path, split, CLASSES).rows(ALL))


@pytest.mark.parametrize("place", ["images", "images/val", "a.tar", "a.tar.gz"])
def test_folders_and_archives_give_the_same_rows(tmp_path, place):
    write_tree(tmp_path / "images", FILES | {"val/a/.hidden": b"x", "val/.ipynb_checkpoints/x.JPEG": b"x"})
    for name in ("a.tar", "a.tar.gz"):
        write_tar(tmp_path / name, FILES | {"val/a/.hidden": b"x", "val/.ipynb_checkpoints/x.JPEG": b"x"})
    wanted = [(name, data) for name, data in FILES.items() if name.startswith("val/")]
    found = rows(tmp_path / place)
    assert [(label, data) for _, label, data, _ in found] == [(CLASSES.index(name[4]), data) for name, data in wanted]
    assert [position for position, *_ in found] == list(range(6))
    for row, (name, _) in zip(found, wanted, strict=True):
        assert name.rpartition("/")[2] in row[3]


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_a_folder_inside_of_a_class_is_refused(tmp_path, kind):
    files = FILES | {"val/a/more/x.JPEG": b"x"}
    place = write_tree(tmp_path / "images", files) if kind == "folder" else write_tar(tmp_path / "a.tar", files)
    with pytest.raises(UserError, match="val/a/more"):
        rows(place)


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_a_broken_image_is_named(tmp_path, kind):
    files = FILES | {"val/b/broken.JPEG": FILES["val/b/b_0.JPEG"][:300]}
    place = write_tree(tmp_path / "images", files) if kind == "folder" else write_tar(tmp_path / "a.tar", files)
    runtime = Runtime(eval_batch_size=4, workers=1, worker_kind="thread")
    with pytest.raises(UserError, match=r"val/b/broken\.JPEG'?: image of 300 bytes does not decode.*replace or remove it"):
        list(eval_batches(open_labelled(place, "val", CLASSES).rows(ALL), EvalTask(evaluation(32)), runtime))


def test_a_dangling_link_is_named(tmp_path):
    images = write_tree(tmp_path / "images", FILES)
    (images / "val/b/gone.JPEG").symlink_to(tmp_path / "nowhere")
    with pytest.raises(
        UserError, match=r"val/b/gone\.JPEG: cannot be read \(No such file or directory\); replace or remove it"
    ):
        rows(images)


def test_files_beside_class_folders_and_empty_classes_are_refused(tmp_path):
    images = write_tree(tmp_path / "one", FILES | {"val/readme.txt": b"x"})
    with pytest.raises(UserError, match=r"has files beside its class folders: readme\.txt"):
        rows(images)
    images = write_tree(tmp_path / "two", small_files(1, 1, ("a",)))
    (images / "val/b").mkdir()
    with pytest.raises(UserError, match="classes without images: val/b"):
        rows(images)


PLACES = ("images", "dataset.json", "a.tar", "shards/val-00000.mindrecord")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same images of the classes a and b in every place that is evaluated."""
    folder = tmp_path_factory.mktemp("places")
    converted(folder, FILES)
    write_tar(folder / "a.tar", FILES)
    return folder


def labelled(places, place, class_names):
    """What is opened, and {class in the data: labels} of all its images."""
    names = places / "dataset.json" if place.endswith(".mindrecord") else None
    source = open_labelled(places / place, "val", class_names, names)
    labels: dict[str, set[int]] = {}
    found = list(source.rows(ALL))
    for _, label, data, *_ in found:
        name = next(name for name, content in FILES.items() if content == data and name.startswith("val"))
        labels.setdefault(name[4], set()).add(label)
    assert source.images in (len(found), None)
    return source, labels, found


@pytest.mark.parametrize("place", PLACES)
def test_classes_are_matched_by_name_everywhere(places, place):
    for class_names, wanted, words in (
        (("a", "b"), {"a": {0}, "b": {1}}, None),
        (("b", "a"), {"a": {1}, "b": {0}}, "matched by name"),
        (("b", "c", "a"), {"a": {2}, "b": {0}}, "2 of the checkpoint's 3 classes"),
    ):
        source, labels, _ = labelled(places, place, class_names)
        assert labels == wanted
        assert source.note is None if words is None or place == "a.tar" else words in source.note


@pytest.mark.parametrize("place", ["images", "dataset.json", "shards/val-00000.mindrecord"])
def test_images_of_classes_that_the_checkpoint_does_not_know_are_left_out(places, place):
    everything = {data: position for position, _, data, *_ in labelled(places, place, ("a", "b"))[2]}
    source, labels, found = labelled(places, place, ("b",))
    assert labels == {"b": {0}} and source.images == 3
    assert "1 of its 2 classes are not among the checkpoint's 1: their images are left out (a)" in source.note
    assert all(everything[data] == position for position, _, data, *_ in found), "positions stay those of all images"
    halves = [row[0] for part in (slice(None, None, 2), slice(1, None, 2)) for row in source.rows(part)]
    assert sorted(halves) == [row[0] for row in found]


@pytest.mark.parametrize("place", PLACES)
def test_classes_that_cannot_be_matched_are_refused(places, place):
    with pytest.raises(UserError, match="does not have: b; it has a, c"):
        labelled(places, place, ("a", "c"))


def test_a_mindrecord_needs_the_names_of_its_classes(places, tmp_path):
    shard = places / "shards/val-00000.mindrecord"
    with pytest.raises(UserError, match=r"does not know the names of its classes: .*--classes-from FILE"):
        open_labelled(shard, "val", CLASSES)
    (tmp_path / "names.txt").write_text("b\na\n")
    rows = list(open_labelled(shard, "val", CLASSES, tmp_path / "names.txt").rows(ALL))
    assert {data: label for _, label, data in rows} == {
        data: {"a": 1, "b": 0}[name[4]] for name, data in FILES.items() if name.startswith("val")
    }
    (tmp_path / "short.txt").write_text("a\n")
    with pytest.raises(UserError, match="holds the label 1, --classes-from names 1 classes"):
        open_labelled(shard, "val", CLASSES, tmp_path / "short.txt")
    with pytest.raises(UserError, match="only a .mindrecord needs --classes-from"):
        open_labelled(places / "images", "val", CLASSES, tmp_path / "names.txt")
