"""Every configuration in config/ through the workflow itself, from the archive to the table, with its architecture and its recipe.

Images are of ImageNet's usual size. Only what makes a run long is reduced, by `--config`: the data, the number of epochs and of
warm-up epochs, the batch, the devices. (bfloat16, which CPUs do not have, becomes float16.)
"""

import io
import re
import tarfile
from pathlib import Path

import pandas as pd
import pytest
import yaml
from networks import initialised_checkpoint
from photo import encode, photo

from cswin.config.resolve import parse_settings

CONFIG = Path(__file__).parents[2] / "config"
CLASSES, TRAIN, VAL = ("n01440764", "n02119789"), 2, 1  # images of each class
DEFAULT = "config.yaml"  # the digits: `finished_run`, and .ci/run as it is
COMMON = ["finetune.yaml", "imagenet/paper_tiny_224.yaml", "imagenet/report_small_224_one_run.yaml"]  # T and S
LARGE = [  # and what is like one of these but for numbers, to keep the time of all tests within an hour
    "imagenet/paper_small_224.yaml",
    "imagenet/report_small_224.yaml",
    "imagenet/report_small_224_a2.yaml",
    "imagenet/paper_base_224.yaml",
    "imagenet/paper_base_384.yaml",
    "imagenet/paper_large_224.yaml",
    "imagenet/paper_large_384.yaml",
]


def test_every_configuration_is_run():
    found = {path.relative_to(CONFIG).as_posix() for path in CONFIG.rglob("*.yaml")}
    assert found == {DEFAULT, *COMMON, *LARGE}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder of photographs and, beside it, the same as images.tar.gz."""
    folder = tmp_path_factory.mktemp("images")
    with tarfile.open(folder / "images.tar.gz", "w:gz") as archive:
        for split, count in (("train", TRAIN), ("val", VAL)):
            for label, name in enumerate(CLASSES):
                for number in range(count):
                    data = encode(photo(500, 375, 100 * label + 10 * (split == "val") + number), "JPEG", quality=90)
                    member = tarfile.TarInfo(f"{split}/{name}/{name}_{number}.JPEG")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
                    path = folder / "tree" / member.name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)
    return folder


def reduced(values: dict, images: Path) -> dict:
    """What `--config` changes: an epoch per stage of two steps of two images."""
    data = {"name": "photos", "classes": len(CLASSES)}
    if values["data"]["source"] == "folder":
        data["folder"] = str(images / "tree")
    else:
        data |= {"archive": str(images / "images.tar.gz"), "expect_train": TRAIN * 2, "expect_val": VAL * 2}
    phases = dict.fromkeys(("warmup_length", "cool_length", "tail_length", "over_length"), 0)
    stages = {  # the stages continue one schedule, so its cosine phase is one epoch in each of them
        name: {"start_epoch": i, "epochs": i + 1, "schedule": phases | {"tail_length": i}}
        for i, name in enumerate(values["stages"])
    }
    runtime = {"device_target": "CPU", "devices": 1, "batch_size": 2, "accumulation": 1, "eval_batch_size": 2}
    runtime |= {"workers": 2, "worker_kind": "thread", "keep_states": 2}
    changes = {"data": data, "schedule": phases, "stages": stages, "runtime": runtime}
    changes |= {"augment": {"mixup_group": 2}, "optimizer": {"global_batch": 2}}
    if values["optimizer"]["amp_dtype"] == "bfloat16":
        changes["optimizer"]["amp_dtype"] = "float16"
    return changes


def check(workspace, images: Path, file: str) -> None:
    values = yaml.safe_load((CONFIG / file).read_text())
    changes = reduced(values, images)
    if values.get("pretrained"):
        changes["pretrained"] = str(workspace.path / "pretrained.safetensors")
        initialised_checkpoint(values["model"]["arch"], changes["pretrained"])
    arguments = [f"{key}={value!r}".replace("None", "null") for key, value in changes.items()]
    command = ["results/final_acc.csv", "--configfile", f"config/{file}", "--config", *arguments, "--cores", "2"]
    done = workspace.snakemake(*command, timeout=3000)
    table = pd.read_csv(workspace.path / "results/final_acc.csv")
    assert list(table.stage) == list(values["stages"]) and (table.n == VAL * 2).all()
    run = workspace.path / "results" / values["run"]
    for stage in values["stages"]:
        used = yaml.safe_load((run / "config" / f"{stage}.yaml").read_text())
        settings = parse_settings(values)
        assert used["model"] == settings.model.model_dump(mode="json")
        history = (run / stage / "history.jsonl").read_text()
        losses = [float(loss) for loss in re.findall(r'"kind": "step".*?"loss": ([\d.e+-]+)', history)]
        assert len(losses) == TRAIN and '"skipped": 0.0' in history, done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("file", [pytest.param(COMMON[0], marks=pytest.mark.variant), *COMMON[1:]])
def test_from_the_archive_to_the_table(file, workspace, images):
    check(workspace, images, file)


@pytest.mark.slow
@pytest.mark.large
@pytest.mark.parametrize("file", LARGE)
def test_large_from_the_archive_to_the_table(file, workspace, images):
    check(workspace, images, file)
