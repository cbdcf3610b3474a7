"""One writer: the lease with a kernel lock and without, contested, lost, left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from cswin.errors import UserError
from cswin.run import lease as module
from cswin.run.lease import Lease, LeaseLost, holder


@pytest.fixture(params=[True, False], ids=["lock", "no lock"])
def use_lock(request):
    return request.param


def leave(folder, **facts):
    """The record of a holder that did not release it."""
    record = {"host": "elsewhere", "pid": 1, "started": "1", "processes": "other", "job": "77", "heartbeat": time.time()}
    folder.mkdir(exist_ok=True)
    (folder / "lease-000004.json").write_text(json.dumps(record | {"every": 0.2} | facts))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_holder_is_named_and_nothing_touched(tmp_path, use_lock):
    with Lease(tmp_path, 60, use_lock=use_lock):
        (tmp_path / "history.jsonl").write_text("{}\n")
        before = contents(tmp_path)
        for other_lock in (True, False):  # whatever the second one does
            with pytest.raises(UserError, match=f"process {os.getpid()}"), Lease(tmp_path, 60, use_lock=other_lock):
                pass
        after = contents(tmp_path)
        after.pop("lease.lock", None), before.pop("lease.lock", None)
        assert after == before
        assert holder(tmp_path)["pid"] == os.getpid()
    assert holder(tmp_path) is None
    with Lease(tmp_path, 60, use_lock=use_lock):
        pass


def test_nobody_holds_what_does_not_exist(tmp_path):
    assert holder(tmp_path / "stage1") is None


def test_record_is_readable(tmp_path, use_lock, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with Lease(tmp_path, 60, use_lock=use_lock):
        record = holder(tmp_path)
        assert (record["host"], record["job"]) == (os.uname().nodename, "4711") and time.time() - record["heartbeat"] < 30
        with pytest.raises(UserError, match=r"job 4711, last heartbeat \d+ s ago"), Lease(tmp_path, 60, use_lock=use_lock):
            pass


def test_heartbeat_goes_on(tmp_path, use_lock):
    with Lease(tmp_path, 0.4, use_lock=use_lock) as lease:
        first = holder(tmp_path)["heartbeat"]
        deadline = time.monotonic() + 30
        while holder(tmp_path)["heartbeat"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        lease.check()


@pytest.mark.parametrize("started", ["1", None], ids=["number reused", "dead"])
def test_dead_holder_on_this_host_is_replaced_at_once(tmp_path, use_lock, started):
    pid = os.getpid()  # alive, but not the process that took the lease
    if started is None:
        dead = subprocess.Popen(["true"])
        dead.wait()
        pid, started = dead.pid, "1"
    leave(tmp_path, pid=pid, started=started, processes=module._process_table())
    began = time.monotonic()
    with Lease(tmp_path, 600, use_lock=use_lock):
        assert holder(tmp_path)["pid"] == os.getpid()
    assert time.monotonic() - began < 300


def test_killed_holder_with_a_child_that_keeps_the_lock(tmp_path):
    code = (
        "import os, sys, time; from cswin.run.lease import Lease\n"
        "with Lease(sys.argv[1], 60):\n"
        "    child = os.fork()\n"
        "    print(child, flush=True) if child else None\n"
        "    time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    try:
        with Lease(tmp_path, 600):
            assert holder(tmp_path)["pid"] == os.getpid()
    finally:
        os.kill(child, signal.SIGKILL)


def test_other_host_is_replaced_after_the_timeout_only(tmp_path, use_lock):
    leave(tmp_path)
    said, began = [], time.time()
    with Lease(tmp_path, 1.0, said.append, use_lock):
        assert time.time() - began >= 0.9
        assert [path.name for path in tmp_path.glob("lease-*.json")] == ["lease-000005.json"]
    assert len(said) == 1 and "host elsewhere, process 1, job 77" in said[0]


@pytest.mark.parametrize("clock", [-3600, 0, 3600])
def test_live_holder_on_another_host_is_never_replaced_whatever_its_clock(tmp_path, use_lock, clock):
    ended = threading.Event()

    def beat():
        while not ended.wait(0.1):
            temporary = tmp_path / "next"
            temporary.write_text(json.dumps(json.loads(record) | {"heartbeat": time.time() + clock}))
            temporary.replace(tmp_path / "lease-000004.json")

    leave(tmp_path, heartbeat=time.time() + clock)
    record = (tmp_path / "lease-000004.json").read_text()
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="host elsewhere"), Lease(tmp_path, 4, lambda line: None, use_lock):
            pass
    finally:
        ended.set()
        thread.join()


def test_record_that_was_never_written_whole_does_not_block_for_ever(tmp_path, use_lock):
    (tmp_path / "lease-000001.json").write_text('{"host": "els')
    with Lease(tmp_path, 0.4, use_lock=use_lock):
        assert holder(tmp_path)["pid"] == os.getpid()


def test_holder_that_was_replaced_notices_and_leaves_everything_to_its_successor(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_process_table", lambda: "elsewhere")
    sleeper = Lease(tmp_path, 0.4, use_lock=False)
    sleeper._heartbeat = lambda: None  # suspended
    sleeper.__enter__()
    sleeper.check()
    monkeypatch.setattr(module, "_process_table", lambda: "here")
    with Lease(tmp_path, 0.4, lambda line: None, use_lock=False) as successor:
        with pytest.raises(LeaseLost, match=f"process {os.getpid()}.*has taken this stage over"):
            sleeper.check()
        del sleeper._heartbeat
        sleeper._heartbeat()  # it wakes up: ends by itself
        sleeper.__exit__()
        assert holder(tmp_path)["nonce"] == successor.me["nonce"]
        successor.check()
    assert [path.name for path in tmp_path.glob("lease-*.json")] == ["lease-000002.json"]


def test_numbers_that_began_anew_do_not_make_an_old_holder_a_new_one(tmp_path):
    first = Lease(tmp_path, 60, use_lock=False)
    with first:
        for record in tmp_path.glob("lease-*"):
            record.unlink()
        with Lease(tmp_path, 60, use_lock=False), pytest.raises(LeaseLost):
            first.check()


CONTEST = """
import os, random, sys, time
from pathlib import Path
from cswin.errors import UserError
from cswin.run import lease
from cswin.run.lease import Lease

look = lease._newest

def slow_look(folder):  # what was seen is a little old when it is acted on, as on a slow file system
    newest = look(folder)
    time.sleep(random.uniform(0, 0.03))
    return newest

lease._newest = slow_look
folder, use_lock, count = Path(sys.argv[1]), sys.argv[2] == "True", int(sys.argv[3])
start = time.monotonic() + 0.2
children = []
for number in range(count):
    child = os.fork()
    if child:
        children.append(child)
        continue
    random.seed(number)
    time.sleep(max(start - time.monotonic(), 0))
    try:
        with Lease(folder, 60, use_lock=use_lock):
            (folder / f"won-{number}").touch()
            while len(list(folder.parent.glob("refused-*"))) < count - 1 and time.monotonic() < start + 60:
                time.sleep(0.01)
    except UserError as error:
        (folder.parent / f"refused-{number}").write_text(str(error))
    os._exit(0)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("before", ["nothing", "dead", "released"])
@pytest.mark.parametrize("locks", [True, False], ids=["lock", "no lock"])
def test_of_many_that_start_at_once_one_wins(tmp_path, locks, before):
    for attempt in range(4):
        folder = tmp_path / str(attempt) / "stage"
        folder.mkdir(parents=True)
        if before == "dead":
            leave(folder, processes=module._process_table(), pid=2**22 + 1)
        if before == "released":
            leave(folder, released=time.time())
        subprocess.run([sys.executable, "-c", CONTEST, str(folder), str(locks), "12"], check=True, timeout=120)
        won = [path.name for path in folder.glob("won-*")]
        assert len(won) == 1
        refusals = [path.read_text() for path in folder.parent.glob("refused-*")]
        assert len(refusals) == 11 and all("another trainer is at work here" in text for text in refusals)
        if not locks:  # with a lock the record may not have been written yet when the lock tells
            assert len({re.search(r"process (\d+)", text)[1] for text in refusals}) == 1
        rest = {path.name for path in folder.iterdir()} - {won[0], "lease.lock"}
        assert rest == {"lease-000001.json" if before == "nothing" else "lease-000005.json"}
