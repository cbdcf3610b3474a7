"""Nodes, ranks and devices: found where the scheduler says, refused where they are not those that were configured."""

import socket
import stat
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from recipes import recipe

from cswin.config.resolve import parse_settings
from cswin.config.runtime import Runtime
from cswin.distributed.cluster import find_cluster, free_port, read_hosts, require_devices
from cswin.distributed.launcher import launch, on_one_node, run_on_devices
from cswin.distributed.ranks import ALONE, Ranks
from cswin.distributed.stopping import EXIT_DEFECT
from cswin.errors import UserError


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """A job step of two nodes, as Slurm describes it to a task; scontrol expands its list."""
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames npu[07-08]" ] && printf "npu07\\nnpu08\\n"\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=":")

    def task(**variables):
        found = {"SLURM_JOB_ID": "4711", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "npu[07-08]", "SLURM_LOCALID": "0"}
        for name, value in (found | variables).items():
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)

    for name in ("SLURMD_NODENAME", "SLURM_NODEID", "SLURM_PROCID", "SLURM_JOB_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    return task


TWO = Runtime(devices=16, nodes=2)


def test_slurm_gives_the_nodes_and_the_place_among_them(slurm):
    places = []
    for node in range(2):
        slurm(SLURM_NODEID=str(node))
        places.append(find_cluster(TWO))
    first, second = places
    assert (first.master, first.node, list(first.local_ranks)) == ("npu07", 0, [*range(8)])
    assert (second.master, second.node, list(second.local_ranks)) == ("npu07", 1, [*range(8, 16)])
    assert first.port == second.port  # agreed without a word
    slurm(SLURM_JOB_ID="4712", SLURM_NODEID="0")
    assert find_cluster(TWO).port != first.port  # two jobs on a node do not meet
    slurm(SLURMD_NODENAME="npu08", SLURM_NODEID="0")  # the name tells more than a number that is counted in the whole job
    assert find_cluster(TWO).node == 1
    slurm(SLURM_STEP_NODELIST=None, SLURM_JOB_NODELIST="npu[07-08]", SLURM_PROCID="1", SLURM_NODEID=None, SLURMD_NODENAME=None)
    assert find_cluster(TWO).node == 1
    assert find_cluster(TWO.model_copy(update={"master_port": 5000})).port == 5000


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"SLURM_STEP_NUM_NODES": None},
            "no Slurm job step; start one launcher per node with `srun --nodes=2 --ntasks-per-node=1",
        ),
        ({"SLURM_LOCALID": "1"}, "--ntasks-per-node=1"),
        ({"SLURM_STEP_NODELIST": "npu[1-"}, "`scontrol show hostnames npu.1-` failed"),
    ],
)
def test_what_slurm_says_and_does_not_fit_is_refused(slurm, variables, message):
    slurm(**variables)
    with pytest.raises(UserError, match=message):
        find_cluster(TWO)


def test_another_number_of_nodes_is_refused(slurm):
    slurm()
    with pytest.raises(UserError, match=r"runtime.nodes: 4, but the Slurm job step has 2 \(npu07, npu08\)"):
        find_cluster(Runtime(devices=16, nodes=4))


def test_a_host_file_gives_the_place(tmp_path):
    own = socket.gethostbyname("localhost")
    file = tmp_path / "hosts"
    file.write_text(f"203.0.113.1   # TEST-NET-3: nobody's\n\n{own}\n")
    cluster = find_cluster(Runtime(devices=4, nodes=2, host_file=str(file)))
    assert (cluster.master, cluster.node, list(cluster.local_ranks)) == ("203.0.113.1", 1, [2, 3])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("203.0.113.1\n203.0.113.2\n", "none of its lines is"),
        ("127.0.0.1\nlocalhost\n", "127.0.0.1, localhost is"),
        ("127.0.0.1\n", "has 1 "),
        ("a\na\n", "each host once"),
        ("a slots=8\n", "one name or address a line"),
    ],
)
def test_host_files_that_do_not_fit_are_refused(tmp_path, text, message):
    file = tmp_path / "hosts"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        find_cluster(Runtime(devices=4, nodes=2, host_file=str(file)))
    with pytest.raises(UserError, match="No such file"):
        read_hosts(tmp_path / "nothing")


def test_the_port_is_free():
    port = free_port()
    with socket.socket() as listener:
        listener.bind(("", port))


def test_fewer_npus_than_configured_are_refused(monkeypatch):
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "0,1,2,3")
    with pytest.raises(
        UserError, match=r"runtime.devices: this node needs 8 NPUs, but the job has 4 \(ASCEND_RT_VISIBLE_DEVICES=0,1,2,3\)"
    ):
        require_devices(Runtime(), 8)
    require_devices(Runtime(), 4)
    require_devices(Runtime(device_target="CPU"), 8)
    monkeypatch.delenv("ASCEND_RT_VISIBLE_DEVICES")
    require_devices(Runtime(), 8)


def test_cores_are_bound_in_rising_order_of_the_npus_only(monkeypatch):
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "3,10,2")
    require_devices(Runtime(), 3)
    with pytest.raises(UserError, match="bind_cores: ASCEND_RT_VISIBLE_DEVICES=3,10,2 must be in ascending order"):
        require_devices(Runtime(bind_cores=True), 3)
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "2,3,10")
    require_devices(Runtime(bind_cores=True), 3)


def test_msrun_by_hand_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")
    with pytest.raises(UserError, match="calls msrun itself"):
        run_on_devices(Runtime(devices=2), tmp_path, lambda *_: 0, lambda: None)


def test_inherited_variables_of_msrun_are_named(monkeypatch, tmp_path):
    """One device, and nobody has used msrun: an image sets them."""
    for name, value in (("MS_ROLE", "MS_WORKER"), ("MS_SCHED_HOST", "10.0.0.1"), ("MS_WORKER_NUM", "8")):
        monkeypatch.setenv(name, value)
    with pytest.raises(
        UserError, match="MS_SCHED_HOST=10.0.0.1, MS_WORKER_NUM=8: .* unset MS_ROLE MS_SCHED_HOST MS_WORKER_NUM"
    ):
        run_on_devices(Runtime(devices=1, device_target="CPU"), tmp_path, lambda *_: 0, lambda: None)


def test_what_a_rank_leaves_in_a_shell_makes_no_rank(monkeypatch, tmp_path):
    monkeypatch.setenv("CSWIN_LAUNCH", '{"folder": "/nowhere", "started": 0.0}')
    monkeypatch.delenv("MS_ROLE", raising=False)
    assert run_on_devices(Runtime(devices=1, device_target="CPU"), tmp_path, lambda *_: 7, lambda: None) == 7


def test_what_the_check_refuses_starts_nothing(tmp_path):
    def refuse():
        raise UserError("no such file")

    with pytest.raises(UserError, match="no such file"):
        run_on_devices(Runtime(devices=2, device_target="CPU"), tmp_path, lambda *_: 0, refuse)
    assert not list(tmp_path.iterdir())


def test_evaluation_takes_the_devices_of_one_node():
    assert on_one_node(Runtime(devices=16, nodes=2, host_file="hosts")) == Runtime(devices=8)


@pytest.mark.parametrize(
    ("runtime", "message"),
    [({"nodes": 3}, "3 nodes cannot share 8 devices"), ({"host_file": "hosts"}, "no effect on one node")],
)
def test_settings_that_do_not_fit_are_refused(runtime, message):
    with pytest.raises(UserError, match=message):
        parse_settings(recipe(runtime=runtime))


class Together(Ranks):
    """Ranks in threads of this process, whose words meet at a barrier."""

    def join(self, barrier: threading.Barrier, box: dict):
        object.__setattr__(self, "meeting", (barrier, box))
        return self

    def _words_of_all(self, words):
        barrier, box = self.meeting
        assert words.dtype == np.int32 and words.ndim == 1
        box[self.rank] = words
        barrier.wait(timeout=20)
        everything = np.stack([box[rank] for rank in range(self.size)])
        barrier.wait(timeout=20)
        return everything


def together(size: int, work) -> list:
    """work(ranks) of each rank, at the same time."""
    barrier, box = threading.Barrier(size), {}
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, [Together(rank, size).join(barrier, box) for rank in range(size)]))


@pytest.mark.parametrize("images", [0, 1, 2, 3, 7, 13])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_item_has_one_rank_and_none_has_more_than_the_first(images, size):
    parts = [np.arange(images)[Ranks(rank, size).part] for rank in range(size)]
    assert sorted(np.concatenate(parts)) == list(range(images))
    assert len(parts[0]) == max(map(len, parts)) <= min(map(len, parts)) + 1


@pytest.mark.parametrize("images", [0, 1, 2, 13])
@pytest.mark.parametrize("kind", ["int32", "float64", "bool", "int64"])
def test_what_was_dealt_out_comes_back_in_order_on_every_rank(images, kind):
    rng = np.random.default_rng(images)
    for shape in ((images,), (images, 5)):
        whole = (rng.standard_normal(shape) * 100).astype(kind)
        for got in together(3, lambda ranks, whole=whole: ranks.gather(whole[ranks.part])):
            assert got.dtype == whole.dtype and np.array_equal(got, whole)


def test_one_reason_is_everybodys():
    reasons = [None, "asked to stop by SIGUSR1", "the time limit is near: \u00e4"]
    assert together(3, lambda ranks: ranks.agree(reasons[ranks.rank])) == [reasons[1]] * 3
    assert together(2, lambda ranks: ranks.agree(None)) == [None, None]
    assert together(2, lambda ranks: ranks.agree(reasons[2] if ranks.rank else None)) == [reasons[2]] * 2


def test_one_different_bit_is_seen():
    values = np.ones(1000, np.float32)
    other = values.copy()
    other.view(np.int32)[999] ^= 1
    assert together(3, lambda ranks: ranks.same([values, values])) == [True] * 3
    assert together(3, lambda ranks: ranks.same([values, other if ranks.rank == 2 else values])) == [False] * 3


def test_alone_nothing_is_told():
    rows = np.arange(6).reshape(3, 2)
    assert ALONE.gather(rows) is rows and ALONE.agree(None) is None and ALONE.agree("why") == "why"
    assert ALONE.first and ALONE.same([rows]) and ALONE.follow_first((3, 1), []) == [3, 1]


@pytest.mark.slow
def test_no_part_of_a_path_is_executed(monkeypatch, tmp_path):
    """After a failure msrun hands the path of its logs to a shell."""
    folder = tmp_path / "its `touch executed` & 1"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cswin", "no-such-command"])
    runtime = Runtime(device_target="CPU", devices=2, worker_kind="thread")
    assert launch(find_cluster(runtime), folder, time.monotonic(), False) == EXIT_DEFECT
    [logs] = folder.iterdir()
    assert {"msrun.log", "worker_0.log", "worker_1.log", "scheduler.log"} <= {path.name for path in logs.iterdir()}
    said = [(logs / f"worker_{rank}.log").read_text() for rank in range(2)]  # the first to fail ends the other
    assert any("no-such-command" in text for text in said)
    assert not list(tmp_path.rglob("executed")) and "Syntax error" not in (logs / "msrun.log").read_text()
