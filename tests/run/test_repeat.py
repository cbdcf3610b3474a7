"""When a complete stage is trained again: what the workflow's marks say."""

import hashlib
import json
import os

import pytest

from cswin.errors import UserError
from cswin.run.repeat import ACCEPTED, REPEAT, accept, accept_if_used, ask_to_repeat, check_previous, is_damaged


@pytest.fixture
def stage(tmp_path):
    """A complete stage, as the trainer leaves it: the record is the last file."""
    (tmp_path / "state").mkdir()
    (tmp_path / "checkpoint.safetensors").write_bytes(b"weights")
    facts = json.dumps({"sha256": hashlib.sha256(b"weights").hexdigest()})
    for file, date in (("state/complete.json", 3), ("record.json", 2)):
        (tmp_path / file).write_text(facts)
        os.utime(tmp_path / file, (date, date))
    os.utime(tmp_path / "checkpoint.safetensors", (1, 1))
    return tmp_path


def marks(stage) -> set[str]:
    return {ACCEPTED, REPEAT} & {file.name for file in (stage / "state").iterdir()}


def test_only_a_complete_stage_is_accepted(stage):
    accept(stage / "state")
    assert marks(stage) == {ACCEPTED}
    (stage / "state" / ACCEPTED).unlink()
    (stage / "state/complete.json").unlink()
    accept(stage / "state")
    assert marks(stage) == set()


def test_forced_before_it_was_used_it_is_not_repeated(stage):
    assert ask_to_repeat(stage, True)
    assert marks(stage) == set()


def test_what_a_later_job_wrote_after_its_end_tells_that_it_was_used(stage):
    user = stage / "evaluation.json"
    for date, expected in ((None, set()), (2, set()), (4, {ACCEPTED})):
        if date:
            user.touch()
            os.utime(user, (date, date))
        accept_if_used(stage / "state", [stage / "nothing", user])
        assert marks(stage) == expected
    assert not ask_to_repeat(stage, True)
    accept_if_used(stage / "state", [user])
    assert marks(stage) == {REPEAT}
    accept_if_used(stage / "no state", [user])


def test_forced_after_it_was_used_it_is_repeated(stage):
    accept(stage / "state")
    ask_to_repeat(stage, False)
    assert marks(stage) == {ACCEPTED}
    ask_to_repeat(stage, True)
    assert marks(stage) == {REPEAT}


def test_a_request_is_withdrawn_unless_its_job_has_started(stage):
    accept(stage / "state")
    ask_to_repeat(stage, True)
    ask_to_repeat(stage, False)
    assert marks(stage) == {ACCEPTED}
    ask_to_repeat(stage, True)
    (stage / "checkpoint.safetensors").unlink()  # Snakemake does so before it starts the job
    ask_to_repeat(stage, False)
    assert marks(stage) == {REPEAT}


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"Weights")])
def test_forced_with_a_missing_or_damaged_checkpoint_it_is_restored(stage, damage):
    accept(stage / "state")
    damage(stage / "checkpoint.safetensors")
    assert ask_to_repeat(stage, True)
    assert marks(stage) == {ACCEPTED}


def test_damage_is_noticed_and_dates_are_none(stage):
    checkpoint = stage / "checkpoint.safetensors"
    assert not is_damaged(stage)
    os.utime(checkpoint)
    assert not is_damaged(stage)
    checkpoint.write_bytes(b"Weights")
    assert is_damaged(stage)
    checkpoint.unlink()
    assert not is_damaged(stage)  # Snakemake sees that by itself
    assert not is_damaged(stage / "nothing")


def test_a_stage_does_not_start_from_a_damaged_checkpoint(stage, tmp_path):
    checkpoint = stage / "checkpoint.safetensors"
    check_previous(checkpoint, hashlib.sha256(b"weights").hexdigest())
    with pytest.raises(UserError, match="remove it and give the same command again"):
        check_previous(checkpoint, hashlib.sha256(b"Weights").hexdigest())
    (stage / "record.json").unlink()
    check_previous(checkpoint, "any: it is not a stage's")
