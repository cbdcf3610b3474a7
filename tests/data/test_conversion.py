"""All shards of a dataset by one job: only what is missing is converted, and the result is that of single conversions."""

import json

import pytest
from converted import converted
from image_trees import small_files

from cswin.data.store.assemble import verify_dataset, write_dataset
from cswin.data.store.conversion import convert_missing, plan_shards
from cswin.data.store.dataset import Dataset
from cswin.errors import UserError
from cswin.progress import Console


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A converted dataset, and beside it the same by one job."""
    folder = tmp_path_factory.mktemp("conversion")
    converted(folder, small_files(6, 2))
    plan = plan_shards(folder / "manifest.json", 1, folder / "shards/1MiB")
    convert_missing(folder / "images", folder / "manifest.csv.gz", plan, 2, Console())
    return folder, plan


def test_it_is_the_same_dataset(made):
    folder, plan = made
    single = Dataset.load(folder / "dataset.json")
    dataset = write_dataset(plan, plan.parent, folder / "together.json")
    assert [facts.content for facts in dataset.splits["train"]] == [facts.content for facts in single.splits["train"]]
    assert dataset.manifest_hash == single.manifest_hash and dataset.summary == "shards/1MiB/plan.json"
    assert [check.problems for check in verify_dataset(folder / "together.json", Console())] == [(), ()]


def test_only_what_is_missing_or_of_other_images_is_converted(made):
    folder, plan = made
    shards = {path.name: path for path in plan.parent.glob("*.mindrecord")}
    assert sorted(shards) == ["train-00000.mindrecord", "val-00000.mindrecord"]
    before = {name: path.stat().st_mtime_ns for name, path in shards.items()}
    convert_missing(
        folder / "nowhere", folder / "manifest.csv.gz", plan, 2, Console()
    )  # it needs no images: nothing is missing
    whole = shards["val-00000.mindrecord"].read_bytes()
    shards["val-00000.mindrecord"].write_bytes(whole[:-1])
    convert_missing(folder / "images", folder / "manifest.csv.gz", plan, 2, Console())
    assert shards["val-00000.mindrecord"].read_bytes() == whole
    assert shards["train-00000.mindrecord"].stat().st_mtime_ns == before["train-00000.mindrecord"]


def test_what_is_wrong_with_an_image_is_said(made):
    folder, plan = made
    plan.with_name("val-00000.json").unlink()
    with pytest.raises(UserError, match="extract again"):
        convert_missing(folder / "nowhere", folder / "manifest.csv.gz", plan, 2, Console())


def test_a_plan_holds_only_what_the_manifest_does_not(made):
    """The images of its manifest in shards of another size; of a manifest that is another one by now nothing is converted."""
    folder, plan = made
    manifest = json.loads((folder / "manifest.json").read_text())
    content = json.loads(plan.read_text())
    assert content == {"format": manifest["format"], "manifest": "../../manifest.json", "shard_mb": 1} | {
        "manifest_hash": manifest["manifest_hash"]
    }
    other = plan.with_name("other.json")
    other.write_text(json.dumps(content | {"manifest_hash": "0" * 64}))
    with pytest.raises(UserError, match=r"other.json: was made from another manifest than .*manifest.json is now"):
        convert_missing(folder / "images", folder / "manifest.csv.gz", other, 2, Console())
