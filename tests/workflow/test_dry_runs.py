"""What snakemake does is what its dry run said, for every key of the configuration; with a stub in the place of `cswin`."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import Workspace, shorten
from dry_runs import Snakemake, all_keys, changed, copy_tree, jobs, reasons
from stub_cswin import digest

from cswin.config.resolve import dump, parse_settings, resolve_stage

pytestmark = pytest.mark.slow
CHECK = """
from snakemake.exceptions import WorkflowError
include: "Snakefile"
onstart:
    for job in workflow.dag.jobs:
        for dependent, files in workflow.dag.depending[job].items():
            if all(file.is_ancient for file in files):
                print("ONLY ANCIENT:", job.rule.name, dependent.rule.name)
    raise WorkflowError("CHECKED")
"""


@pytest.fixture(scope="module")
def snakemake(tmp_path_factory):
    run = Snakemake(tmp_path_factory.mktemp("snakemake"))
    yield run
    run.close()


def make_run(folder: Path, snakemake, **environment) -> tuple[int, Path]:
    """The default configuration with the test's three short stages, run to its end or to where the environment stops it."""
    workspace = Workspace.create(folder)

    workspace.edit("config/config.yaml", shorten)
    given = folder / "given"
    given.mkdir()
    for name in ("a.tar.gz", "train_archive.tar", "val_archive.tar", "devkit.tar", "weights.safetensors"):
        (given / name).write_text(name)
    for split in ("train", "val"):
        (given / "images" / split / "one").mkdir(parents=True)
        (given / "images" / split / "one" / "1.png").write_text(split)
    code, output = snakemake(folder, "--cores", "4", **environment)
    assert environment or code == 0, output
    return code, folder


@pytest.fixture(scope="module")
def finished(snakemake, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("finished") / "run", snakemake)[1]


@pytest.fixture(scope="module")
def interrupted(snakemake, tmp_path_factory):
    code, folder = make_run(tmp_path_factory.mktemp("interrupted") / "run", snakemake, STUB_STOP="stage2")
    assert code == 1 and (folder / "results/digits/stage1/record.json").exists()
    return folder


def check_promise(folder: Path, snakemake, *arguments: str) -> dict:
    """The dry run's jobs are done, everything is what the configuration says, and nothing is left to do; the jobs by rule and output."""
    code, said = snakemake(folder, "-n", *arguments)
    assert code == 0, said[-3000:]
    code, done = snakemake(folder, "--cores", "4", "-p", *arguments)  # -p: each job in full
    assert code == 0, done[-3000:]
    assert jobs(done) == jobs(said)
    code, after = snakemake(folder, "-n", *arguments)
    assert code == 0 and "Nothing to be done" in after, after
    return jobs(said)


def check_results(folder: Path) -> None:
    """Every stage's record belongs to the configuration, the data and the stage before as they are now."""
    settings = parse_settings(yaml.safe_load((folder / "config/config.yaml").read_text()))
    data = json.loads((folder / settings.data.directory / settings.data.name / "manifest.json").read_text())["manifest_hash"]
    previous = sha256(folder / settings.pretrained) if settings.pretrained else None
    for stage in settings.stages:
        record = json.loads((folder / "results" / settings.run / stage / "record.json").read_text())
        assert record["identity"] == digest(dump(resolve_stage(settings, stage)), data, previous), stage
        previous = record["sha256"]
    assert (folder / "results" / settings.run / "README.md").exists() and (folder / "results/final_acc.csv").exists()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def trained(folder: Path) -> dict[str, int]:
    """How often each stage was trained from nothing."""
    return {f.parent.name: len(f.read_text().splitlines()) for f in folder.glob("results/*/*/trained.txt")}


def edit(folder: Path, change) -> None:
    file = folder / "config/config.yaml"
    file.write_text(yaml.safe_dump(change(yaml.safe_load(file.read_text())), sort_keys=False))


@pytest.mark.variant  # of the tests below, for a quarter of an hour
@pytest.mark.parametrize("situation", ["finished", "interrupted"])
def test_every_key(situation, request, snakemake, tmp_path):
    """A dry run for each key. Of the keys with the same listed jobs and reasons only one is run, since these determine what runs."""
    base, seen = request.getfixturevalue(situation), {}
    trial = copy_tree(base, tmp_path / "trial")
    original = (base / "config/config.yaml").read_text()
    for key in all_keys():
        (trial / "config/config.yaml").write_text(original)
        edit(trial, lambda values, key=key: changed(values, key))
        code, said = snakemake(trial, "-n")
        assert code == 0, f"{key}: {said}"
        listed = reasons(said)
        if listed in seen:
            continue
        seen[listed] = key
        folder = copy_tree(base, tmp_path / f"run{len(seen)}")
        edit(folder, lambda values, key=key: changed(values, key))
        try:
            check_promise(folder, snakemake)
            check_results(folder)
        except AssertionError as error:
            raise AssertionError(f"{key}: {error}") from error
    assert len(seen) > 10


def published(values: dict) -> dict:
    return values | {"pretrained": "weights:cswin_tiny_224"}


class TestPublishedWeights:
    """`pretrained: weights:NAME`: fetched once, by a job before the first stage, and never removed by Snakemake."""

    @pytest.fixture
    def run(self, finished, snakemake, tmp_path):
        folder = copy_tree(finished, tmp_path / "run")
        edit(folder, published)
        return folder

    def trained_with_them(self, folder: Path, snakemake, *arguments: str) -> dict:
        done = check_promise(folder, snakemake, *arguments)
        identity = json.loads((folder / "results/digits/stage1/record.json").read_text())["identity"]
        settings = parse_settings(yaml.safe_load((folder / "config/config.yaml").read_text()))
        data = json.loads((folder / "data/digits/manifest.json").read_text())["manifest_hash"]
        assert identity == digest(
            dump(resolve_stage(settings, "stage1")), data, sha256(folder / "weights/cswin_tiny_224.safetensors")
        )
        return done

    def test_they_are_fetched_before_the_first_stage(self, run, snakemake):
        done = self.trained_with_them(run, snakemake)
        assert done["published_weights", "results/digits/config/weights.json"] == 1
        assert (run / "fetched.txt").read_text() == "cswin_tiny_224\n"
        edit(run, lambda values: values | {"seed": 7})
        assert "published_weights" not in {rule for rule, _ in self.trained_with_them(run, snakemake)}

    def test_those_that_are_there_are_used(self, run, snakemake):
        """As `cswin weights get --from FILE` leaves them, on a machine without a network; even where all jobs run again."""
        (run / "weights").mkdir()
        (run / "weights/cswin_tiny_224.safetensors").write_text("by hand")
        self.trained_with_them(run, snakemake)
        code, done = snakemake(run, "--cores", "4", "--forceall")
        assert code == 0, done[-3000:]
        assert not (run / "fetched.txt").exists() and (run / "weights/cswin_tiny_224.safetensors").read_text() == "by hand"

    def test_without_them_a_finished_run_is_finished(self, run, snakemake):
        self.trained_with_them(run, snakemake)
        shutil.rmtree(run / "weights")
        assert "Nothing to be done" in snakemake(run, "-n")[1]
        assert not (run / "weights").exists()

    def test_an_interrupted_run_fetches_them_again(self, interrupted, snakemake, tmp_path):
        folder = copy_tree(interrupted, tmp_path / "run")
        edit(folder, published)
        code, done = snakemake(folder, "--cores", "4", STUB_STOP="stage1")
        assert code == 1 and (folder / "fetched.txt").exists(), done
        (folder / "results/digits/stage1/record.json").unlink(missing_ok=True)
        shutil.rmtree(folder / "weights")
        assert ("published_weights", "results/digits/config/weights.json") in self.trained_with_them(folder, snakemake)

    def test_a_damaged_checkpoint_needs_them(self, run, snakemake):
        self.trained_with_them(run, snakemake)
        shutil.rmtree(run / "weights")
        checkpoint = run / "results/digits/stage1/checkpoint.safetensors"
        whole = checkpoint.read_bytes()
        checkpoint.write_bytes(b"x" + whole[1:])
        code, done = snakemake(run, "--cores", "4")
        assert code == 0, done[-3000:]
        assert checkpoint.read_bytes() == whole and (run / "weights/cswin_tiny_224.safetensors").exists()
        assert "Nothing to be done" in snakemake(run, "-n")[1]

    def test_a_folder_of_one_s_own(self, run, snakemake, tmp_path):
        place = tmp_path / "shared place"
        for _ in range(2):
            code, done = snakemake(run, "--cores", "4", CSWIN_WEIGHTS=str(place))
            assert code == 0, done[-3000:]
        assert "Nothing to be done" in done
        assert (place / "cswin_tiny_224.safetensors").exists() and not (run / "weights").exists()

    def test_a_name_that_is_not_published(self, run, snakemake):
        code, said = snakemake(run, "-n", "--config", "pretrained=weights:cswin_tny")
        assert (
            code == 1
            and "pretrained: weights:cswin_tny: no such weights are published; one of: weights:cswin_tiny_224," in said
        )
        assert "Traceback" not in said


def test_no_job_depends_on_another_only_through_ancient(snakemake, tmp_path):
    """Snakemake skips such a job when the other one has to run (rules/common.smk)."""
    workspace = Workspace.create(tmp_path / "run")
    (workspace.path / "check.smk").write_text(CHECK)
    _, output = snakemake(workspace.path, "all", "--cores", "4", "-s", "check.smk", "--config", "runtime={preflight: always}")
    assert "CHECKED" in output, output
    assert "ONLY ANCIENT" not in output
    for file in workspace.path.glob("rules/**/*.smk"):
        assert not re.search(r"^checkpoint ", file.read_text(), re.MULTILINE), file


@pytest.fixture(scope="module")
def checked(snakemake, tmp_path_factory):
    workspace = Workspace.create(tmp_path_factory.mktemp("preflight") / "run")
    workspace.edit("config/config.yaml", shorten)
    edit(workspace.path, lambda values: values | {"runtime": values["runtime"] | {"preflight": "always"}})
    done = check_promise(workspace.path, snakemake)
    assert ("preflight", "results/digits/preflight.json, results/digits/preflight.passed") in done
    return workspace.path


class TestPreflight:
    """It runs once, before the first stage, and only where it is wanted; a change of `runtime` never causes a job."""

    def test_it_is_not_wanted_on_a_cpu(self, finished):
        assert not (finished / "results/digits/preflight.json").exists()

    def test_ascend_wants_it(self, snakemake, tmp_path):
        folder = Workspace.create(tmp_path / "run").path
        code, said = snakemake(folder, "-n", "--config", "runtime={device_target: Ascend}")
        assert code == 0 and set(re.findall(r"^preflight +(\d+)$", said, re.MULTILINE)) == {"1"}, said

    def test_it_comes_before_the_first_stage(self, checked):
        files = [checked / "results/digits" / name for name in ("preflight.json", "stage1/trained.txt")]
        dates = [file.stat().st_mtime_ns for file in files]
        assert dates == sorted(dates) and trained(checked) == {"stage1": 1, "stage2": 1, "stage3": 1}

    @pytest.mark.parametrize("change", [{"preflight": "never"}, {"device_target": "Ascend", "preflight": "auto"}])
    def test_what_was_trained_stays_whatever_is_wanted_later(self, checked, finished, snakemake, tmp_path, change):
        for name, run in (("checked", checked), ("finished", finished)):
            folder = copy_tree(run, tmp_path / name)
            edit(folder, lambda values: values | {"runtime": values["runtime"] | change})
            assert "Nothing to be done" in snakemake(folder, "-n")[1], name

    def test_other_figures_train_nothing(self, checked, snakemake, tmp_path):
        folder = copy_tree(checked, tmp_path / "run")
        (folder / "results/digits/preflight.json").write_text("other figures")
        (folder / "results/digits/preflight.passed").touch()
        assert "Nothing to be done" in snakemake(folder, "-n")[1]

    def test_forced_with_a_stage_still_to_train(self, checked, snakemake, tmp_path):
        """Snakemake skips jobs that depend on a forced one only through ancient()."""
        folder = copy_tree(checked, tmp_path / "run")
        (folder / "results/digits/stage1/record.json").unlink()
        code, done = snakemake(folder, "--cores", "4", "--forcerun", "preflight")
        assert code == 0 and (folder / "results/digits/stage1/record.json").exists(), done[-3000:]
        assert trained(folder) == trained(checked)
        check_results(folder)


def test_a_missing_picture_is_made_whatever_else_has_to_run(finished, snakemake, tmp_path):
    """After exit code 0 a requested file exists, even if another job hides the reason to make it."""
    folder = copy_tree(finished, tmp_path / "run")
    (folder / "results/digits/throughput.png").unlink()
    edit(folder, lambda values: values | {"paper_top1": 98.0})
    done = check_promise(folder, snakemake)
    assert {rule for rule, _ in done} >= {"throughput", "curves", "table"}
    assert (folder / "results/digits/throughput.png").exists()


def test_two_runs_at_once_in_two_folders_share_converted_images(finished, snakemake, tmp_path):
    """As docs/recovery.md says: a second folder, the first one's data.directory; nothing of the data is made again."""
    second = Workspace.create(tmp_path / "second")
    second.edit("config/config.yaml", shorten)
    second.edit("config/config.yaml", lambda v: (v.update(run="second"), v["data"].update(directory=str(finished / "data"))))
    before = {path: path.stat().st_mtime_ns for path in finished.glob("data/digits/**/*")}
    done = check_promise(second.path, snakemake)
    assert not {rule for rule, _ in done} & {"extract", "manifest", "dataset", "shard_plan"}
    assert {path: path.stat().st_mtime_ns for path in finished.glob("data/digits/**/*")} == before
    assert (second.path / "results/second/README.md").exists()


@pytest.mark.parametrize("forced", ["extract", "manifest", "dataset", "shard_plan", "stages_config", "expectations_config"])
def test_forced_preparation_in_an_interrupted_run(interrupted, snakemake, tmp_path, forced):
    folder = copy_tree(interrupted, tmp_path / "run")
    code, done = snakemake(folder, "--cores", "4", "--forcerun", forced)
    assert code == 0, done[-3000:]
    check_results(folder)
    code, after = snakemake(folder, "-n")
    assert code == 0 and "Nothing to be done" in after, after
    assert trained(folder) == {"stage1": 1, "stage2": 1, "stage3": 1}


def test_forced_stage_is_trained_and_the_next_one_if_its_start_differs(finished, snakemake, tmp_path):
    folder = copy_tree(finished, tmp_path / "run")
    for count in (2, 3):
        code, done = snakemake(folder, "--cores", "4", "--forcerun", "train_stage2")
        assert code == 0, done[-3000:]
        assert trained(folder) == {"stage1": 1, "stage2": count, "stage3": 1}  # the stub trains to the same bits
    check_results(folder)


@pytest.mark.parametrize("damage", ["missing", "changed"])
@pytest.mark.parametrize(
    "arguments",
    [
        (), ("results/digits/stage2/checkpoint.safetensors",), ("-f", "results/digits/stage2/checkpoint.safetensors"),
        ("--forcerun", "train_stage2"), ("--config", "stages={stage3: {schedule: {cool_lr: 2.0e-5}}}"),
    ],
)  # fmt: skip
def test_a_lost_checkpoint_is_restored_whatever_asks_for_it(finished, snakemake, tmp_path, damage, arguments):
    folder = copy_tree(finished, tmp_path / "run")
    checkpoint = folder / "results/digits/stage2/checkpoint.safetensors"
    whole = checkpoint.read_bytes()
    checkpoint.unlink()
    if damage == "changed":
        checkpoint.write_bytes(b"x" + whole[1:])
    code, done = snakemake(folder, "--cores", "4", "-p", *arguments)  # -p: each job in full
    assert code == 0, done[-3000:]
    assert checkpoint.read_bytes() == whole
    setting = arguments if "--config" in arguments else ()
    code, done = snakemake(folder, "--cores", "4", *setting)
    assert code == 0, done[-3000:]
    assert trained(folder) == {"stage1": 1, "stage2": 1, "stage3": 2 if setting else 1}
    code, after = snakemake(folder, "-n", *setting)
    assert code == 0 and "Nothing to be done" in after, after


@pytest.fixture(scope="module")
def made(snakemake, tmp_path_factory):
    """A finished run on a user's own folder of images."""
    folder = make_run(tmp_path_factory.mktemp("own") / "run", snakemake)[1]
    edit(folder, lambda values: changed(values, "data.folder"))
    check_promise(folder, snakemake)
    return folder


class TestOwnFolder:
    """`source: folder`: what changes in it is noticed; content decides."""

    @pytest.fixture
    def run(self, made, tmp_path):
        folder = tmp_path / "run"
        shutil.copytree(made, folder, symlinks=True)
        (folder / "results/digits/stage1/trained.txt").write_text("")
        return folder

    def test_a_copy_with_the_same_dates_is_the_same(self, run, snakemake):
        assert "Nothing to be done" in snakemake(run, "-n")[1]

    def test_touched_images_train_nothing(self, run, snakemake):
        for file in run.glob("given/images/*/*/*"):
            os.utime(file, (1, 1))
        before = (run / "data/digits/folder.json").read_bytes()
        code, said = snakemake(run, "-n")
        assert code == 0 and ("manifest", "data/digits/manifest.csv.gz, data/digits/manifest.json") in jobs(said)
        assert (run / "data/digits/folder.json").read_bytes() == before  # a dry run writes nothing
        check_promise(run, snakemake)
        assert trained(run)["stage1"] == 0
        check_results(run)

    @pytest.mark.parametrize("change", ["added", "removed", "replaced"])
    def test_other_images_train_again(self, run, snakemake, change):
        image = run / "given/images/train/one/1.png"
        if change == "added":
            image.with_name("2.png").write_text("new")
        elif change == "removed":
            image.unlink()
        else:  # of the same size, by a program that keeps the name
            image.write_text("TRAIN")
        check_promise(run, snakemake)
        assert trained(run)["stage1"] == 1
        check_results(run)

    def test_a_folder_that_is_gone_is_no_change(self, run, snakemake):
        shutil.rmtree(run / "given/images")
        assert "Nothing to be done" in snakemake(run, "-n")[1]
