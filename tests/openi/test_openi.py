"""The parts of a job on the platform: storage, inputs, ownership, the mirror of the results."""

import json
import os
import shutil
import socket
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from cswin.distributed.group import ProcessGroup
from cswin.errors import UserError
from cswin.openi.inputs import bring_checkpoint, bring_data
from cswin.openi.job import Job
from cswin.openi.mirror import Mirror
from cswin.openi.ownership import ownership
from cswin.openi.parameters import ROOT, parse_parameters
from cswin.openi.storage import Storage, join, storage_for
from cswin.run.states import StateFolder
from cswin.train.state import State


@pytest.fixture
def moxing(tmp_path, monkeypatch):
    """The stand-in for the platform's module."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "support" / "stand_in")
    monkeypatch.setenv("MOXING_BUCKETS", str(tmp_path / "buckets"))
    (tmp_path / "buckets" / "bucket").mkdir(parents=True)
    import moxing

    return moxing


@pytest.fixture(params=["folder", "moxing"])
def place(request, tmp_path):
    """(storage, URL) of a place to bring out to."""
    if request.param == "folder":
        return Storage(), str(tmp_path / "out")
    return Storage(request.getfixturevalue("moxing").file, pauses=(0,)), "obs://bucket/out"


class TestStorage:
    def test_round_trip(self, place, tmp_path):
        storage, url = place
        file, again = tmp_path / "file.bin", tmp_path / "deep" / "again.bin"
        file.write_bytes(os.urandom(1000))
        target = join(url, "a", "b", "file.bin")
        assert not storage.exists(target) and storage.names(url) == [] and storage.read(target) is None
        storage.put(file, target)
        assert storage.exists(target) and storage.size(target) == 1000 and not storage.is_folder(target)
        assert storage.is_folder(join(url, "a")) and storage.names(join(url, "a")) == ["b"]
        storage.get(target, again)
        assert again.read_bytes() == file.read_bytes() == storage.read(target)
        storage.write(target, "text")
        assert storage.read(target) == b"text"
        storage.get_folder(url, tmp_path / "all")
        assert (tmp_path / "all" / "a" / "b" / "file.bin").read_text() == "text"
        storage.remove(target)
        storage.remove(target)
        assert not storage.exists(target)

    def test_a_file_may_grow_while_it_is_copied(self, place, tmp_path, monkeypatch):
        storage, url = place
        file = tmp_path / "history.jsonl"
        file.write_text("1\n")
        copy = storage.file.copy

        def slow(source, target):
            copy(source, target)
            with file.open("a") as more:
                more.write("2\n")

        monkeypatch.setattr(storage.file, "copy", slow)
        storage.put(file, join(url, "history.jsonl"))
        monkeypatch.setattr(storage.file, "copy", lambda source, target: storage.file.write(target, ""))
        with pytest.raises(UserError, match="has 0 bytes after copying, not 4"):
            storage.put(file, join(url, "history.jsonl"))

    def test_failures_that_pass_are_not_seen_and_others_name_the_path(self, moxing):
        storage = Storage(moxing.file, pauses=(0, 0))
        storage.write("obs://bucket/a.txt", "a")
        moxing.failures = 2
        assert storage.size("obs://bucket/a.txt") == 1
        moxing.failures = 3
        with pytest.raises(UserError, match="obs://bucket/a.txt: .* 3 times .*503"):
            storage.size("obs://bucket/a.txt")

    def test_object_storage_without_moxing(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "moxing", None)
        with pytest.raises(UserError, match="needs the module moxing"):
            storage_for("obs://bucket/x")


def said(*line):
    """Messages that no test asks about."""


class TestInputs:
    def test_archive_is_brought_in_once(self, moxing, tmp_path):
        bucket = tmp_path / "buckets" / "bucket" / "data"
        bucket.mkdir()
        (bucket / "imagenet.tar.gz").write_bytes(b"1234")
        (bucket / "pretrained.zip").write_bytes(b"")
        lines = []
        for _ in range(2):
            found = bring_data([("obs://bucket/data/", "data")], tmp_path / "work", lines.append)
            assert found == {"source": "archive", "archive": str(tmp_path / "work" / "inputs" / "imagenet.tar.gz")}
        assert Path(found["archive"]).read_bytes() == b"1234" and len(lines) == 1

    def test_plain_files_are_used_where_they_are(self, tmp_path):
        (tmp_path / "imagenet.tar").write_bytes(b"1")
        assert bring_data([(str(tmp_path), "x")], tmp_path / "work", said) == {
            "source": "archive",
            "archive": f"{tmp_path}/imagenet.tar",
        }
        assert not (tmp_path / "work").exists()

    def test_folder_with_train_and_val(self, tmp_path):
        for split in ("train", "val"):
            (tmp_path / "set" / split).mkdir(parents=True)
        for url in (tmp_path, tmp_path / "set"):
            assert bring_data([(str(url), "x")], tmp_path, said) == {"source": "folder", "folder": f"{tmp_path}/set"}

    def test_official_files_belong_together(self, tmp_path):
        for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
            (tmp_path / name).touch()
        with pytest.raises(UserError, match="devkit_t12.tar.gz is missing beside"):
            bring_data([(str(tmp_path), "x")], tmp_path, said)
        (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").touch()
        found = bring_data([(str(tmp_path), "x")], tmp_path, said)
        assert found["source"] == "ilsvrc2012" and found["devkit"].endswith("devkit_t12.tar.gz") and len(found) == 4

    def test_nothing_two_and_nowhere_are_refused_by_name(self, tmp_path):
        with pytest.raises(UserError, match="there is no such file or folder"):
            bring_data([(str(tmp_path / "no"), "no")], tmp_path, said)
        with pytest.raises(UserError, match="found nothing"):
            bring_data([(str(tmp_path), "x")], tmp_path, said)
        for name in ("a.tar", "b.tar"):
            (tmp_path / name).touch()
        with pytest.raises(UserError, match="found a.tar, b.tar"):
            bring_data([(str(tmp_path), "x")], tmp_path, said)

    def test_the_reports_pretrained_zip(self, moxing, tmp_path):
        bucket, work = tmp_path / "buckets" / "bucket", tmp_path / "work"
        with zipfile.ZipFile(bucket / "pretrained.zip", "w") as packed:
            packed.writestr("pretrained/cswin.ckpt", b"weights")
            packed.writestr("pretrained/cswin_old.ckpt", b"old")
        places = [("obs://bucket/pretrained.zip", "pretrained.zip")]
        assert bring_checkpoint("cswin", places, work, said) == "inputs/cswin.ckpt"
        assert (work / "inputs" / "cswin.ckpt").read_bytes() == b"weights"
        assert bring_checkpoint("cswin_o", places, work, said) == "inputs/cswin_old.ckpt"
        for name in ("other", None):
            with pytest.raises(UserError, match=r"found cswin.ckpt, cswin_old.ckpt"):
                bring_checkpoint(name, places, work, said)

    def test_a_model_of_the_platform_and_a_path(self, tmp_path):
        file = tmp_path / "models" / "tiny.safetensors"
        file.parent.mkdir()
        file.write_bytes(b"w")
        assert bring_checkpoint(None, [(str(file.parent), "models")], tmp_path / "w1", said) == "inputs/tiny.safetensors"
        assert bring_checkpoint(str(file), [], tmp_path / "w2", said) == "inputs/tiny.safetensors"
        assert bring_checkpoint(None, [], tmp_path / "w3", said) is None


class TestOwnership:
    def test_living_job_is_named_and_stays(self, place):
        storage, url = place
        with ownership(storage, url, 0.1, said) as lost:
            with pytest.raises(UserError, match=f"host {socket.gethostname()}"), ownership(storage, url, 0.1, said):
                pass
            assert not lost()
        assert storage.names(url) == []

    def test_dead_job_is_replaced_and_notices_it_if_it_was_only_slow(self, place):
        storage, url = place
        path = join(url, "owner.json")
        with ownership(storage, url, 1000, said) as slow:
            record = json.loads(storage.read(path))
            storage.write(path, json.dumps(record | {"every_s": 0.05}))  # it promised more than it keeps
            with ownership(storage, url, 0.05, said) as fast:
                assert not fast() and slow()
                assert json.loads(storage.read(path))["nonce"] != record["nonce"]
            assert slow()  # also when the other one has ended
        assert storage.names(url) == []

    def test_a_slower_heartbeat_than_ones_own_is_waited_for(self, place):
        storage, url = place
        with ownership(storage, url, 0.3, said), pytest.raises(UserError, match="at work"), ownership(storage, url, 0.01, said):
            pass


class Stage:
    """A stage in the middle of its training, in a work folder."""

    def __init__(self, work: Path):
        self.work, self.folder = work, work / "results" / "r" / "stage1"
        for name in ("r/config/stage1.yaml", "r/logs/train_stage1.log", "r/logs/table.log", "final_acc.csv", "r/stage1/record.json",
                     "r/stage1/lease-000001.json", "r/stage1/.record.partial.json",
                     "r/stage1/state/state-000000000.damaged", "r/stage1/attempts.jsonl"):  # fmt: skip
            file = work / "results" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(name)
        self.states = StateFolder(self.folder / "state", 3, said)

    def train(self, step: int, more: str = "") -> None:
        """A row of the history, a state that needs it, and perhaps another row that none needs yet."""
        history, before = self.folder / "history.jsonl", self.states.load()
        with history.open("ab") as file:
            file.truncate(before.meta["history_bytes"] if before else 0)  # as a trainer does that goes on
            file.write(json.dumps({"step": step, "time": 1e9 + step}).encode() + b"\n")
        self.states.save(State(step, {"a": np.arange(step)}, {"history_bytes": history.stat().st_size}), background=False)
        with history.open("a") as file:
            file.write(more)


def next_job(place, path: Path) -> tuple[Path, State | None]:
    """Its stage's folder, restored, and the state from which its trainer goes on."""
    Mirror(*place, path, said).restore()
    folder = path / "results" / "r" / "stage1"
    return folder, StateFolder(folder / "state", 3, said).load()


def allowed():
    """No other job has come."""


class TestMirror:
    def test_next_job_gets_what_no_rule_makes(self, place, tmp_path):
        stage = Stage(tmp_path / "old")
        for step in (1, 2, 3):
            stage.train(step)
        Mirror(*place, stage.work, allowed).copy()
        folder, state = next_job(place, tmp_path / "new")
        assert state.step == 3 and state.arrays["a"].tolist() == [0, 1, 2]
        results = tmp_path / "new" / "results"
        assert sorted(str(file.relative_to(results)) for file in results.rglob("*") if file.is_file()) == [
            "r/logs/train_stage1.log",
            "r/stage1/attempts.jsonl",
            "r/stage1/history.jsonl",
            "r/stage1/state/state-000000002.safetensors",
            "r/stage1/state/state-000000003.safetensors",
        ]
        assert (folder / "history.jsonl").read_bytes() == (stage.folder / "history.jsonl").read_bytes()
        assert (folder / "history.jsonl").stat().st_mtime == 1e9 + 3  # when the killed attempt was last alive

    def test_what_people_find(self, place, tmp_path):
        storage, url = place
        stage = Stage(tmp_path)
        stage.train(1)
        Mirror(storage, url, tmp_path, allowed).copy()
        found = storage.names(join(url, "results"), below=True)
        assert [name for name in found if "." in name] == [
            "final_acc.csv",
            "r/config/stage1.yaml",
            "r/logs/table.log",
            "r/logs/train_stage1.log",
            "r/stage1/attempts.jsonl",
            "r/stage1/history.jsonl",
            "r/stage1/record.json",
            "r/stage1/state/state-000000001.safetensors",
        ]

    @pytest.mark.parametrize("run", ["state", "lease-1"])
    def test_a_run_may_have_any_name(self, place, tmp_path, run):
        Stage(tmp_path).train(1)
        (tmp_path / "results" / "r").rename(tmp_path / "results" / run)
        Mirror(*place, tmp_path, allowed).copy()
        Mirror(*place, tmp_path / "new", allowed).restore()
        assert StateFolder(tmp_path / "new" / "results" / run / "stage1" / "state", 3, said).load().step == 1
        assert (tmp_path / "new" / "results" / run / "stage1" / "history.jsonl").exists()

    def test_states_that_were_set_aside_are_kept_and_those_that_were_replaced_are_not(self, place, tmp_path):
        storage, url = place
        stage, mirror = Stage(tmp_path / "old"), Mirror(*place, tmp_path / "old", allowed)
        stage.train(7)
        mirror.copy()
        (stage.folder / "history.jsonl").rename(stage.states.path / "history.jsonl")
        aside = stage.states.set_aside("another computation")
        mirror.copy()
        assert storage.names(join(url, "results/r/stage1/state")) == [
            "state-000000007.safetensors"
        ]  # no newer one is there yet
        stage.train(1)
        mirror.copy()
        assert storage.names(join(url, "results/r/stage1/state")) == ["state-000000001.safetensors"]
        _, state = next_job(place, tmp_path / "new")
        old = StateFolder(tmp_path / "new" / "results" / "r" / "stage1" / aside.name, 3, said).load()
        assert (state.step, old.step) == (1, 7)

    def test_only_what_changed_is_copied_again(self, place, tmp_path, monkeypatch):
        storage, url = place
        stage = Stage(tmp_path / "old")
        stage.train(1)
        Mirror(storage, url, stage.work, allowed).copy()
        Mirror(storage, url, tmp_path / "new", allowed).restore()
        written = []
        put = storage.put
        monkeypatch.setattr(storage, "put", lambda local, path: (written.append(local.name), put(local, path)))
        mirror = Mirror(storage, url, tmp_path / "new", allowed)
        mirror.restore()
        mirror.copy()
        assert written == []
        with (tmp_path / "new/results/r/stage1/history.jsonl").open("a") as file:
            file.write("more")
        mirror.copy()
        mirror.copy()
        assert written == ["history.jsonl"]

    def test_killed_at_any_moment_the_next_job_goes_on(self, place, tmp_path, monkeypatch):
        """Each write to the storage in turn is the last one before the machine fails."""
        storage, _ = place
        stage, step, best = Stage(tmp_path / "work"), 1, 1
        stage.train(step)
        Mirror(*place, stage.work, allowed).copy()
        for survives in range(30):
            mirror = Mirror(*place, stage.work, allowed)
            step += 1
            stage.train(step, more='{"kind": "cut o')
            writes = iter(range(survives))

            def killing(call, writes=writes):
                def wrapped(*arguments):
                    if next(writes, None) is None:
                        raise KeyboardInterrupt
                    return call(*arguments)

                return wrapped

            done = False
            with monkeypatch.context() as patched:
                for name in ("put", "remove"):
                    patched.setattr(storage, name, killing(getattr(storage, name)))
                try:
                    mirror.copy()
                    done = True
                except KeyboardInterrupt:
                    pass
            folder, state = next_job(place, tmp_path / f"new{survives}")
            assert best <= state.step <= step
            assert state.meta["history_bytes"] <= (folder / "history.jsonl").stat().st_size
            best = state.step
            if done:
                assert best == step
                return
        raise AssertionError("never got through")

    def test_damaged_newest_state_gives_way_to_the_one_before(self, place, tmp_path):
        storage, url = place
        stage = Stage(tmp_path / "work")
        for step in (1, 2):
            stage.train(step)
        Mirror(storage, url, stage.work, allowed).copy()
        storage.write(join(url, "results/r/stage1/state/state-000000002.safetensors"), "half of it")
        assert next_job(place, tmp_path / "new")[1].step == 1

    def test_lost_results_remove_nothing(self, place, tmp_path):
        stage, mirror = Stage(tmp_path / "work"), Mirror(*place, tmp_path / "work", allowed)
        stage.train(1)
        mirror.copy()
        for file in stage.states.path.iterdir():
            file.unlink()
        mirror.copy()
        shutil.rmtree(stage.work / "results")
        mirror.copy()
        assert next_job(place, tmp_path / "new")[1].step == 1

    def test_job_that_has_lost_its_place_writes_nothing(self, place, tmp_path):
        storage, url = place
        stage = Stage(tmp_path / "work")
        stage.train(1)

        def lost():
            raise UserError("another job")

        with pytest.raises(UserError, match="another job"):
            Mirror(storage, url, stage.work, lost).copy()
        assert storage.names(url) == []


def test_results_of_an_earlier_job_in_the_work_folder_are_moved_and_what_lies_at_train_url_counts(tmp_path):
    stage = Stage(tmp_path / "old")
    stage.train(5)
    Mirror(Storage(), str(tmp_path / "out"), stage.work, allowed).copy()
    Stage(tmp_path / "work").train(9)
    job = Job(parse_parameters([f"--config={ROOT / 'config' / 'config.yaml'}", f"--work_dir={tmp_path / 'work'}",
                                f"--train_url={tmp_path / 'out'}"], {}))  # fmt: skip
    job._begin()
    assert StateFolder(tmp_path / "work/results/r/stage1/state", 3, said).load().step == 5
    [aside] = (tmp_path / "work").glob("results.*")
    assert StateFolder(aside / "r/stage1/state", 3, said).load().step == 9


@pytest.mark.slow
def test_empty_machines_train_only_what_is_missing(tmp_path, monkeypatch):
    """The whole workflow with the stand-in for `cswin`, which notes what it trained."""
    stub = tmp_path / "bin" / "cswin"
    stub.parent.mkdir()
    stub.write_text(f"#!{sys.executable} -SE\n{(ROOT / 'tests' / 'support' / 'stub_cswin.py').read_text()}")
    stub.chmod(0o755)
    monkeypatch.setattr(ProcessGroup, "listen", lambda self: None)

    def trained(machine: str, *parameters: str, stop: str = "") -> tuple[int, list[str]]:
        path = f"{stub.parent}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        monkeypatch.setattr("cswin.openi.job._environment", lambda: os.environ | {"PATH": path, "STUB_STOP": stop})
        work = tmp_path / machine
        given = [
            f"--config={ROOT / 'config' / 'config.yaml'}",
            f"--work_dir={work}",
            f"--train_url={tmp_path / 'out'}",
            *parameters,
        ]
        code = Job(parse_parameters(given, {})).run()
        return code, [
            stage for stage in ("stage1", "stage2", "stage3") if (work / f"results/digits/{stage}/trained.txt").exists()
        ]

    code, stages = trained("first", stop="stage2")
    assert code != 0 and stages == ["stage1"]
    assert trained("second") == (0, ["stage2", "stage3"])
    assert (tmp_path / "out" / "results" / "final_acc.csv").exists() and not (tmp_path / "out" / "owner.json").exists()
    assert trained("second") == (0, [])  # again in the same folder
    assert trained("third", "--stages.stage2.schedule.cool_lr=2.0e-5") == (0, ["stage2", "stage3"])
    assert trained("fourth", "--seed=3") == (0, ["stage1", "stage2", "stage3"])


def test_missing_inputs_are_named_with_key_and_remedy(workspace):
    output = workspace.snakemake("-n", "--configfile", "config/imagenet/report_small_224.yaml", check=False).stdout
    assert "data.archive: archives/imagenet.tar.gz is missing" in output and "--config 'data={archive: /path}'" in output
    values = yaml.safe_load((workspace.path / "config" / "finetune.yaml").read_text())
    official = {
        "name": "i",
        "source": "ilsvrc2012",
        "train_archive": "a.tar",
        "val_archive": "b.tar",
        "devkit": "c.tar.gz",
        "classes": 10,
    }
    (workspace.path / "own.yaml").write_text(
        yaml.safe_dump(values | {"data": official, "pretrained": "weights/cswin_tiny_224.safetensors"})
    )
    output = workspace.snakemake("-n", "--configfile", "own.yaml", check=False).stdout
    assert all(word in output for word in ("data.train_archive: a.tar", "data.val_archive: b.tar", "data.devkit: c.tar.gz"))
    assert "pretrained: weights/cswin_tiny_224.safetensors is missing" in output and "convert-weights" in output
    for name in ("a.tar", "b.tar", "c.tar.gz"):
        (workspace.path / name).touch()
    (workspace.path / "weights").mkdir()
    (workspace.path / "weights" / "cswin_tiny_224.safetensors").touch()
    assert "is missing" not in workspace.snakemake("-n", "--configfile", "own.yaml").stdout
