"""The parts of a job on the platform: parameters, storage, inputs, ownership, snapshots."""

import json
import os
import shutil
import socket
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest
import yaml
from conftest import Workspace

from cswin.errors import UserError
from cswin.openi.inputs import bring_checkpoint, bring_data
from cswin.openi.job import read_marker
from cswin.openi.ownership import Ownership
from cswin.openi.selection import Changing, Selection
from cswin.openi.snapshots import Snapshot, Snapshots
from cswin.openi.storage import Folder, Moxing, join, storage_for

OUT = "--train_url=obs://bucket/out"


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
        return Folder(), str(tmp_path / "out")
    return Moxing(request.getfixturevalue("moxing"), pauses=(0,)), "obs://bucket/out"


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

    def test_failures_that_pass_are_not_seen_and_others_name_the_path(self, moxing):
        storage = Moxing(moxing, pauses=(0, 0))
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


def said(line):
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
        with Ownership(storage, url, 0.1, said) as first:
            with pytest.raises(UserError, match=f"host {socket.gethostname()}"), Ownership(storage, url, 0.1, said):
                pass
            assert not first.lost()
        assert storage.names(url) == []

    def test_dead_job_is_replaced_and_notices_it_if_it_was_only_slow(self, place):
        storage, url = place
        path = join(url, "owner.json")
        with Ownership(storage, url, 1000, said) as slow:
            record = json.loads(storage.read(path))
            storage.write(path, json.dumps(record | {"every_s": 0.05}))  # it promised more than it keeps
            with Ownership(storage, url, 0.05, said) as fast:
                assert not fast.lost() and slow.lost()
                assert json.loads(storage.read(path))["nonce"] != record["nonce"]
        assert storage.names(url) == []

    def test_a_slower_heartbeat_than_ones_own_is_waited_for(self, place):
        storage, url = place
        with Ownership(storage, url, 0.3, said), pytest.raises(UserError, match="at work"), Ownership(storage, url, 0.01, said):
            pass


def work_folder(path: Path) -> Path:
    """A work folder in the middle of a stage, made by hand: a recorded output, one whose job runs, a history, temporary files."""
    from cswin.run.states import StateFolder
    from cswin.train.state import State

    stage = path / "results" / "r" / "stage1"
    stage.mkdir(parents=True)
    for folder, output in (("metadata", "results/r/config/stage1.yaml"), ("metadata", "data/x/manifest.json"),
                           ("incomplete", "results/r/stage1/record.json")):  # fmt: skip
        record = path / ".snakemake" / folder / urlsafe_b64encode(output.encode()).decode()
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text("{}")
    (path / "results" / "r" / "config").mkdir()
    (path / "results" / "r" / "config" / "stage1.yaml").write_text("a: 1\n")
    for name in ("record.json", "history.jsonl", "lease-000001.json", ".history.partial", "state.damaged"):
        (stage / name).write_text("0123456789")
    states = StateFolder(stage / "state", 3, print)
    for step in (1, 2):
        states.save(State(step, {}, {"history_bytes": 10}), background=False)
    return path


class TestSelection:
    def test_what_the_next_machine_needs(self, tmp_path):
        selection = Selection(work_folder(tmp_path), said)
        selected = selection.gather(tmp_path / "staging")
        selection.check(selected)
        names = sorted(item.path for item in selected if not item.path.startswith(".snakemake"))
        assert names == [
            "results/r/config/stage1.yaml",
            "results/r/stage1/history.jsonl",
            "results/r/stage1/record.json",
            "results/r/stage1/state/state-000000002.safetensors",
        ]
        assert len(selected) == 4 + 3  # and Snakemake's two records and the marker that record.json is not finished

    def test_a_job_that_ends_meanwhile_is_noticed(self, tmp_path, monkeypatch):
        selection = Selection(work_folder(tmp_path), said)
        copytree = shutil.copytree

        def ending(*arguments, **options):
            for marker in (tmp_path / ".snakemake/incomplete").iterdir():
                marker.unlink()
            return copytree(*arguments, **options)

        monkeypatch.setattr(shutil, "copytree", ending)
        with pytest.raises(Changing):
            selection.gather(tmp_path / "staging")
        monkeypatch.undo()
        assert len(selection.gather(tmp_path / "staging")) == 6

    def test_state_beyond_its_history_is_not_brought_out(self, tmp_path):
        (work_folder(tmp_path) / "results" / "r" / "stage1" / "history.jsonl").write_text("012345678")
        selection = Selection(tmp_path, said)
        with pytest.raises(UserError, match="history is shorter"):
            selection.check(selection.gather(tmp_path / "staging"))

    def test_damaged_state_is_not_brought_out(self, tmp_path):
        state = work_folder(tmp_path) / "results" / "r" / "stage1" / "state" / "state-000000002.safetensors"
        content = bytearray(state.read_bytes())
        content[-5] ^= 1
        state.write_bytes(content)
        selection = Selection(tmp_path, said)
        with pytest.raises(UserError, match="damaged"):
            selection.check(selection.gather(tmp_path / "staging"))
        assert state.exists()  # what to do with it is the trainer's decision


class TestSnapshots:
    def bring_out(self, place, work: Path) -> Snapshots:
        snapshots = Snapshots(*place, said)
        snapshots.commit(Selection(work, said).gather(work / "staging"), "w")
        return snapshots

    def test_restored_with_content_and_order_of_dates(self, place, tmp_path):
        work = work_folder(tmp_path / "old")
        history = work / "results" / "r" / "stage1" / "history.jsonl"
        os.utime(history, (2e9, 2e9))  # that machine's clock was ahead
        snapshots = self.bring_out(place, work)
        new = tmp_path / "new"
        snapshots.restore(snapshots.all(), new)
        restored = new / "results" / "r" / "stage1" / "history.jsonl"
        assert restored.read_bytes() == history.read_bytes()
        config = new / "results" / "r" / "config" / "stage1.yaml"
        assert config.stat().st_mtime < restored.stat().st_mtime <= (tmp_path / "new").stat().st_mtime
        assert not (new / "results" / "r" / "stage1" / "lease-000001.json").exists()

    def test_records_of_this_machine_stay(self, place, tmp_path):
        """The dataset was made here: neither its record nor a marker from the other machine may replace what is known about it."""
        old, new = work_folder(tmp_path / "old"), tmp_path / "new"
        manifest, record = (
            urlsafe_b64encode(f.encode()).decode() for f in ("data/x/manifest.json", "results/r/stage1/record.json")
        )
        (old / ".snakemake/incomplete" / manifest).write_text("{}")
        (new / ".snakemake/metadata").mkdir(parents=True)
        (new / ".snakemake/metadata" / manifest).write_text("made here")
        snapshots = self.bring_out(place, old)
        snapshots.restore(snapshots.all(), new)
        assert (new / ".snakemake/metadata" / manifest).read_text() == "made here"
        assert [file.name for file in (new / ".snakemake/incomplete").iterdir()] == [record]
        assert len(list((new / ".snakemake/metadata").iterdir())) == 2

    def test_two_are_kept_and_unneeded_objects_removed(self, place, tmp_path):
        storage, url = place
        work = work_folder(tmp_path)
        for number in range(4):
            (work / "results" / "r" / "stage1" / "history.jsonl").write_text(f"number {number}, long enough")
            snapshots = self.bring_out(place, work)
        assert [s.number for s in snapshots.all()] == [4, 3]
        needed = {entry.sha256 for snapshot in snapshots.all() for entry in snapshot.entries}
        assert set(storage.names(join(url, "resume", "objects"))) == needed

    def test_unchanged_is_no_new_one(self, place, tmp_path):
        work = work_folder(tmp_path)
        self.bring_out(place, work)
        assert [s.number for s in self.bring_out(place, work).all()] == [1]

    def test_killed_at_any_moment_the_last_whole_one_is_found(self, place, tmp_path, monkeypatch):
        """Each write to the storage in turn is the last one before the machine fails."""
        storage, url = place
        work = work_folder(tmp_path / "work")
        self.bring_out(place, work)
        history, done = work / "results" / "r" / "stage1" / "history.jsonl", False
        for survives in range(20):
            history.write_text(f"{survives} is long enough, too")
            writes = iter(range(survives))

            def killing(call, writes=writes):
                def wrapped(*arguments):
                    if next(writes, None) is None:
                        raise KeyboardInterrupt
                    return call(*arguments)

                return wrapped

            with monkeypatch.context() as patched:
                for name in ("put", "write", "remove"):
                    patched.setattr(storage, name, killing(getattr(storage, name)))
                try:
                    self.bring_out(place, work)
                    done = True
                except KeyboardInterrupt:
                    pass
            snapshots, new = Snapshots(*place, said), tmp_path / f"new{survives}"
            snapshots.restore(snapshots.all()[:1], new)  # the newest, no falling back
            text = (new / "results" / "r" / "stage1" / "history.jsonl").read_text()
            assert text == "0123456789" if survives < 2 else text.endswith("is long enough, too")
            if done:
                assert text == history.read_text()
                return
        raise AssertionError("never got through")

    @pytest.mark.parametrize("what", ["index", "object"])
    def test_damaged_newest_gives_way_to_the_one_before(self, place, tmp_path, what):
        storage, url = place
        work = work_folder(tmp_path / "work")
        snapshots = self.bring_out(place, work)
        (work / "results" / "r" / "stage1" / "history.jsonl").write_text("newer, and long enough")
        self.bring_out(place, work)
        newest, before = snapshots.all()
        [new] = {e.sha256 for e in newest.entries} - {e.sha256 for e in before.entries}
        target = join(url, "resume", "index-00000002.json") if what == "index" else join(url, "resume", "objects", new)
        storage.write(target, "half of it")
        lines = []
        snapshots = Snapshots(*place, lines.append)
        assert snapshots.restore(snapshots.all(), tmp_path / "new").number == 1
        assert lines and (tmp_path / "new" / "results" / "r" / "stage1" / "history.jsonl").read_text() == "0123456789"

    def test_damaged_altogether_is_refused_and_not_overwritten(self, place, tmp_path):
        storage, url = place
        snapshots = self.bring_out(place, work_folder(tmp_path))
        objects = storage.names(join(url, "resume", "objects"))
        storage.write(join(url, "resume", "index-00000001.json"), "{")
        for use in (snapshots.all, lambda: self.bring_out(place, tmp_path)):
            with pytest.raises(UserError, match="no snapshot that can be read whole"):
                use()
        assert storage.names(join(url, "resume", "objects")) == objects


class TestWorkFolder:
    """Whose work a folder holds, and whether it is the newest."""

    MINE = Snapshot(7, "mine", ())
    OTHER = Snapshot(8, "other", ())

    @pytest.mark.parametrize(
        ("began_with", "snapshots"),
        [(0, []), (0, [MINE]), (8, [OTHER]), (7, [MINE]), (None, [OTHER])],
    )
    def test_goes_on(self, tmp_path, began_with, snapshots):
        marker = tmp_path / "openi.json"
        marker.write_text(json.dumps({"train_url": "t", "work_id": "mine", "began_with": began_with}))
        (tmp_path / "results").mkdir()
        assert read_marker(marker, "t", snapshots)["began_with"] == began_with

    @pytest.mark.parametrize(("train_url", "snapshots"), [("t", [OTHER]), ("other", []), ("other", [MINE])])
    def test_refused(self, tmp_path, train_url, snapshots):
        marker = tmp_path / "openi.json"
        marker.write_text(json.dumps({"train_url": "t", "work_id": "mine", "began_with": 3}))
        with pytest.raises(UserError, match="holds the work of another job"):
            read_marker(marker, train_url, snapshots)

    def test_new(self, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        assert read_marker(tmp_path / "a" / "openi.json", "t", [])["began_with"] == 0
        assert read_marker(tmp_path / "b" / "openi.json", "t", [self.OTHER])["began_with"] is None
        assert read_marker(tmp_path / "b" / "openi.json", "t", [self.OTHER])["began_with"] is None  # killed, started again
        (tmp_path / "results").mkdir()
        with pytest.raises(UserError, match="no job has made"):
            read_marker(tmp_path / "openi.json", "t", [])


SMALL_WORKFLOW = """
rule all:
    input: "results/r/one/out.txt", "results/r/two/out.txt"
rule manifest:
    output: "data/x/manifest.json"
    shell: "echo images > {output}"
for stage in ("one", "two"):
    rule:
        name: stage
        input: "data/x/manifest.json"
        output: f"results/r/{stage}/out.txt"
        params: text=config.get("text", "a")
        shell: "cat {input} > {output} && echo {params.text} >> {output}"
"""
TRIGGERS = ("--rerun-incomplete", "--rerun-triggers", "mtime", "params", "input")  # as in the profiles


@pytest.mark.slow
def test_snakemake_takes_its_records_as_they_were(tmp_path):
    """On a machine where the dataset was made anew: what is finished stays, what was not is made again, changes are noticed."""
    machines = [Workspace(tmp_path / name) for name in ("old", "new")]
    for machine in machines:
        machine.path.mkdir()
        (machine.path / "Snakefile").write_text(SMALL_WORKFLOW)
    old, new = machines
    old.snakemake("--cores", "1")
    (old.path / ".snakemake/incomplete").mkdir(exist_ok=True)
    for output in ("results/r/two/out.txt", "data/x/manifest.json"):
        (old.path / ".snakemake/incomplete" / urlsafe_b64encode(output.encode()).decode()).write_text(
            '{"external_jobid": null}'
        )
    snapshots = Snapshots(Folder(), str(tmp_path / "out"), said)
    snapshots.commit(Selection(old.path, said).gather(old.path / "staging"), "w")
    new.snakemake("--cores", "1", "data/x/manifest.json")
    snapshots.restore(snapshots.all(), new.path)
    assert new.planned(*TRIGGERS) == {"two": 1}
    assert new.planned(*TRIGGERS, "--config", "text=b") == {"one": 1, "two": 1}
    (new.path / "data/x/manifest.json").write_text("other images")
    assert new.planned(*TRIGGERS) == {"one": 1, "two": 1}


@pytest.mark.slow
@pytest.mark.parametrize("place", ["folder"], indirect=True)
class TestRestoredRun:
    """A finished run on an empty machine, where the dataset was made anew."""

    @pytest.fixture
    def restored(self, finished_run, place, tmp_path):
        old, new = finished_run.copy(tmp_path / "old"), finished_run.copy(tmp_path / "new")
        selection, snapshots = Selection(old.path, said), Snapshots(*place, said)
        selected = selection.gather(old.path / "staging")
        selection.check(selected)
        snapshots.commit(selected, "w")
        for folder in ("results", "data", ".snakemake"):
            shutil.rmtree(new.path / folder)
        new.snakemake("data/digits/dataset.json")
        assert not (new.path / "results").exists() or not list((new.path / "results").rglob("record.json"))
        shutil.rmtree(new.path / "results", ignore_errors=True)
        snapshots.restore(snapshots.all(), new.path)
        return new

    def test_nothing_is_made_again_and_changes_are_noticed(self, restored):
        table = "results/final_acc.csv"
        assert restored.planned(table) == {}
        planned = restored.planned(table, "--config", "stages={stage2: {schedule: {cool_lr: 2.0e-5}}}")
        assert {rule for rule in planned if rule.startswith("train")} == {"train_stage2", "train_stage3"}
        manifest = restored.path / "data" / "digits" / "manifest.json"
        manifest.write_text(manifest.read_text() + "\n")  # other images
        restored.snakemake("data/digits/dataset.json")  # as a job does: the dataset first
        assert "train_stage1" in restored.planned(table)


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
    (workspace.path / "own.yaml").write_text(yaml.safe_dump(values | {"data": official}))
    output = workspace.snakemake("-n", "--configfile", "own.yaml", check=False).stdout
    assert all(word in output for word in ("data.train_archive: a.tar", "data.val_archive: b.tar", "data.devkit: c.tar.gz"))
    assert "pretrained: weights/cswin_tiny_224.safetensors is missing" in output and "convert-weights" in output
    for name in ("a.tar", "b.tar", "c.tar.gz"):
        (workspace.path / name).touch()
    (workspace.path / "weights").mkdir()
    (workspace.path / "weights" / "cswin_tiny_224.safetensors").touch()
    assert "is missing" not in workspace.snakemake("-n", "--configfile", "own.yaml").stdout
