"""Evaluated folders and archives: the same rules as for training, and errors that name the file."""

import pytest
from image_trees import small_files, write_tar, write_tree
from pipelines import evaluation

from cswin.config.settings import Runtime
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
