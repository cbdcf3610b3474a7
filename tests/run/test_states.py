"""Training states: written whole or not at all, found again, set aside where they belong to another computation."""

import re
import sys

import numpy as np
import pytest
from folders import contents, on_small_disk

from cswin.checkpoint import file_sha256
from cswin.errors import UserError
from cswin.run.decision import decide
from cswin.run.history import History, read_history
from cswin.run.lease import LeaseLost
from cswin.run.repeat import accept, ask_to_repeat
from cswin.run.states import StateFolder
from cswin.train.state import State


def state(step: int) -> State:
    arrays = {"w": np.arange(1000, dtype=np.float32) * step, "ema.w": np.ones(3, np.float32)}
    return State(step, arrays, {"fingerprint": {"a": step}, "history_bytes": 0})


def test_damaged_newest_state_gives_way_to_the_one_before(tmp_path):
    said = []
    states = StateFolder(tmp_path / "state", keep=3, say=said.append)
    for step in (1, 2, 3, 4):
        states.save(state(step))
    states.wait()
    files = sorted((tmp_path / "state").glob("state-*.safetensors"))
    assert len(files) == 3
    data = bytearray(files[-1].read_bytes())
    data[-2000] ^= 1
    files[-1].write_bytes(data)
    files[-2].write_bytes(files[-2].read_bytes()[:-100])
    before = contents(tmp_path)
    looked = StateFolder(tmp_path / "state", keep=3, say=said.append).look()
    assert looked.step == 2 and contents(tmp_path) == before and len(said) == 2
    said.clear()
    found = StateFolder(tmp_path / "state", keep=3, say=said.append).load()
    assert found.step == 2 and np.array_equal(found.arrays["w"], state(2).arrays["w"])
    assert sum("is damaged" in line for line in said) == 2


@pytest.mark.parametrize("told", [True, False], ids=["seen before", "in the middle of writing"])
def test_full_disk_leaves_older_states_whole(tmp_path, told):
    """Three states of 4 MB on 10 MB, the third in the background."""
    script = tmp_path / "fill.py"
    script.write_text(f"""
import sys, numpy as np
from cswin.errors import UserError
from cswin.run import states as module
from cswin.run.states import StateFolder
from cswin.train.state import State

if not {told}:  # another process fills the disk while this one writes
    module.shutil.disk_usage = lambda path: type("Usage", (), {{"free": 1e12}})
states = StateFolder({str(tmp_path / "disk" / "state")!r}, 3, sys.exit)
make = lambda step: State(step, {{"w": np.full(1_000_000, step, np.float32)}}, {{}})
for step in (1, 2, 3):
    states.save(make(step))
try:
    states.wait()
except UserError as error:
    print("refused:", error)
print("left:", sorted(path.name for path in states.path.iterdir()), states.load().arrays["w"][0])
states.path.joinpath("state-000000001.safetensors").unlink()
states.save(make(3))
states.wait()
print("then:", states.load().step)
""")
    done = on_small_disk(tmp_path / "disk", 10, f"{sys.executable} {script}")
    reason = "MB are free" if told else "No space left on device"
    assert re.search(
        rf"refused: .*/state: the training state cannot be written \(.*{reason}.*The older states are intact", done.stdout
    )
    assert "left: ['state-000000001.safetensors', 'state-000000002.safetensors'] 2.0" in done.stdout
    assert "then: 3" in done.stdout


def test_failed_write_in_the_background_is_told_before_the_next_save(tmp_path):
    (tmp_path / "state").write_text("no folder")
    states = StateFolder(tmp_path / "state", keep=2, say=print)
    states.check()
    states.save(state(1))
    states._writer.join()
    with pytest.raises(UserError, match="cannot be written"):
        states.check()
    states.check()


def test_guard_is_asked_when_all_is_written_and_its_refusal_leaves_nothing(tmp_path):
    def guard():
        seen.append(next((tmp_path / "state").glob(".state-*")).stat().st_size)
        if len(seen) > 1:
            raise LeaseLost("taken over")

    seen = []
    states = StateFolder(tmp_path / "state", keep=2, say=print, guard=guard)
    states.save(state(1), background=False)
    with pytest.raises(LeaseLost):
        states.save(state(2), background=False)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["state-000000001.safetensors"]
    assert seen[0] == (tmp_path / "state/state-000000001.safetensors").stat().st_size


def test_what_killed_writers_left_is_removed(tmp_path):
    states = StateFolder(tmp_path / "state", keep=2, say=print)
    states.save(state(1), background=False)
    (tmp_path / "state/.state-000000007.partial.safetensors").write_bytes(b"half")
    states.save(state(2), background=False)
    names = {path.name for path in (tmp_path / "state").iterdir()}
    assert names == {"state-000000001.safetensors", "state-000000002.safetensors"}


def test_state_that_cannot_be_read_is_not_taken_for_damaged(tmp_path, monkeypatch):
    states = StateFolder(tmp_path / "state", keep=2, say=pytest.fail)
    for step in (1, 2):
        states.save(state(step), background=False)
    before = contents(tmp_path)

    def refuse(file):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("cswin.run.states._read", refuse)
    with pytest.raises(
        UserError, match=r"state-000000002\.safetensors: cannot be read \(Permission denied\); nothing was changed"
    ):
        states.load()
    assert contents(tmp_path) == before


def test_state_holds_all_that_training_goes_on_from(finished_run):
    found = StateFolder(finished_run.path / "results/digits/stage2/state", 3, pytest.fail).load()
    weights = [name.removeprefix("ema.") for name in found.arrays if name.startswith("ema.")]
    assert len(weights) > 50
    for prefix in ("", "moment1.", "moment2.", "best.", "best.ema."):
        assert {prefix + name for name in weights} <= found.arrays.keys()
    assert {"loss_scale", "good_steps", "bad_steps", "schedule_step", "updates"} <= found.arrays.keys()
    assert found.step == 132 and found.meta["epochs_done"] == 3 and found.meta["best"]["epoch"] == 2
    assert found.arrays["updates"] == found.arrays["schedule_step"] == 44
    history = finished_run.path / "results/digits/stage2/history.jsonl"
    assert found.meta["history_bytes"] == history.stat().st_size
    assert {"config", "manifest", "input_checkpoint", "versions", "revision"} == found.meta["fingerprint"].keys()
    assert found.meta["fingerprint"]["config"]["optimizer"]["global_batch"] == 32


class TestForeignState:
    """A stage's folder whose state may not be continued."""

    code = {"versions": {"numpy": "1.0"}, "revision": 1}
    identity = {"config": {"seed": 42, "schedule": {"base_lr": 0.001}}, "manifest": "m", **code}

    @pytest.fixture
    def folder(self, tmp_path):
        states = StateFolder(tmp_path / "state", 3, print)
        states.save(State(5, {"w": np.ones(3, np.float32)}, {"fingerprint": self.identity}), background=False)
        (tmp_path / "history.jsonl").write_text('{"step": 5}\n')
        return tmp_path

    def retire(self, folder, identity):
        """What becomes of the state if the stage's identity is this one: "" if it is continued, else what is said."""
        said = []
        states = StateFolder(folder / "state", 3, said.append)
        states.bring_history_back()
        decision = decide(states, identity)
        assert bool(decision.state) != bool(decision.aside)
        if decision.aside:
            states.set_aside(decision.aside)
        return " ".join(said)

    def test_the_same_computation_is_left_alone(self, folder):
        before = contents(folder)
        assert self.retire(folder, self.identity) == "" and contents(folder) == before

    def test_another_one_is_set_aside_with_its_history_and_the_keys_are_named(self, folder):
        before = contents(folder)
        said = self.retire(folder, {"config": {"seed": 7, "schedule": {"base_lr": 0.002}}, "manifest": "m", **self.code})
        assert "config.seed: was 42, is now 7" in said and "config.schedule.base_lr: was 0.001, is now 0.002" in said
        (aside,) = folder.iterdir()
        assert re.fullmatch(r"state\.\d{8}-\d{6}-\d{6}", aside.name) and str(aside) in said
        assert sorted(contents(aside).values()) == sorted(before.values())

    def test_what_was_set_aside_can_be_put_back(self, folder):
        before = contents(folder)
        self.retire(folder, {"config": {"seed": 7}, **self.code})
        (aside,) = folder.iterdir()
        (folder / "history.jsonl").write_text("of the other computation")
        aside.rename(folder / "state")
        assert self.retire(folder, self.identity) == "" and contents(folder) == before

    def test_killed_while_it_is_set_aside(self, folder):
        before = contents(folder)
        (folder / "history.jsonl").rename(folder / "state/history.jsonl")
        assert self.retire(folder, self.identity) == "" and contents(folder) == before

    def test_a_complete_one_goes_on_until_its_repetition_is_asked_for(self, folder):
        checkpoint = folder / "checkpoint.safetensors"
        checkpoint.write_bytes(b"weights")
        StateFolder(folder / "state", 3, print).mark_complete({"sha256": file_sha256(checkpoint)})
        for ready in (lambda: None, lambda: ask_to_repeat(folder, True), lambda: accept(folder / "state")):
            ready()  # nobody has asked; nobody has used it; used
            assert self.retire(folder, self.identity) == ""
        ask_to_repeat(folder, True)
        checkpoint.unlink()  # as Snakemake does before it starts the job
        assert "from the start" in self.retire(folder, self.identity)
        assert not (folder / "state").exists()

    @pytest.mark.parametrize(
        "change", [{"versions": {"numpy": "2.0"}}, {"versions": {"numpy": "1.0", "numba": "1"}}, {"revision": 2}]
    )
    def test_other_versions_in_the_middle_are_refused_until_the_user_decides(self, folder, change):
        before, identity = contents(folder), {**self.identity, **change}
        with pytest.raises(
            UserError, match=r"(numpy: was '1.0', is now '2.0'|numba: was None|revision: was 1).*--accept-versions.*--set-aside"
        ):
            self.retire(folder, identity)
        assert contents(folder) == before
        states, now = StateFolder(folder / "state", 3, print), {**self.code, **change}
        states.accept_versions({**now, "revision": 7})  # a decision for yet other versions
        with pytest.raises(UserError, match="--accept-versions"):
            self.retire(folder, identity)
        states.accept_versions(now)
        assert decide(states, identity).versions == {"step": 5, "was": self.code, "now": now}
        assert "config.seed" in self.retire(folder, {**identity, "config": {"seed": 7}})  # a wish of the user's goes first

    def test_a_complete_stage_does_not_depend_on_versions(self, folder):
        StateFolder(folder / "state", 3, print).mark_complete({"sha256": "0"})
        assert self.retire(folder, {**self.identity, "versions": {"numpy": "2.0"}}) == ""

    def test_no_whole_state(self, folder):
        next(folder.glob("state/state-*")).write_bytes(b"")
        assert "no undamaged state" in self.retire(folder, self.identity)


def test_history_is_cut_to_the_state(tmp_path):
    history = History(tmp_path / "h.jsonl")
    history.append([{"step": 1}, {"step": 2}])
    size = history.size()
    history.append([{"step": 3}])
    history.close()
    again = History(tmp_path / "h.jsonl", size)
    again.append([{"step": 3, "again": True}])
    again.close()
    assert read_history(tmp_path / "h.jsonl") == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
    with pytest.raises(UserError, match="shorter"):
        History(tmp_path / "h.jsonl", 10_000)
