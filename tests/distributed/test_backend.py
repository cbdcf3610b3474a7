"""What is decided for each device, and in which order MindSpore is told: a stand-in for it records the calls."""

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

from cswin import cli
from cswin.config.runtime import Runtime
from cswin.distributed.backend import (
    BACKENDS,
    NOT_INHERITED,
    backend_of,
    backend_text,
    choose_backend,
    prepare_environment,
    refuse_simulation,
    start_backend,
)
from cswin.distributed.launcher import run_on_devices
from cswin.distributed.worker import _join
from cswin.errors import UserError

FIRST_910 = ("Ascend910", "Ascend910A", "Ascend910B", "Ascend910ProA", "Ascend910ProB", "Ascend910PremiumA")
LATER = ("Ascend910B1", "Ascend910B2", "Ascend910B2C", "Ascend910B3", "Ascend910B4", "Ascend910B4-1", "Ascend910_9391")


class Recorder:
    """MindSpore's calls that choose how a device computes, written down in their order."""

    def __init__(self, soc: str, ranks: int):
        self.calls: list[tuple] = []
        self.soc = soc
        precision = {name: self.call(name) for name in ("precision_mode", "conv_allow_hf32", "matmul_allow_hf32")}
        self.mindspore = ModuleType("mindspore")
        self.mindspore.__dict__.update(
            set_device=self.call("set_device"), set_deterministic=self.call("set_deterministic"),
            hal=SimpleNamespace(get_device_name=self.call("get_device_name", soc)),
            device_context=SimpleNamespace(ascend=SimpleNamespace(op_precision=SimpleNamespace(**precision))),
        )  # fmt: skip
        self.communication = ModuleType("mindspore.communication")
        self.communication.__dict__.update(
            init=self.call("init"), get_group_size=self.call("get_group_size", ranks), get_rank=self.call("get_rank", 1)
        )

    def call(self, name: str, answer=None):
        def record(*arguments):
            self.calls.append((name, *arguments))
            return answer

        return record


@pytest.fixture
def mindspore(monkeypatch):
    """A function that puts the stand-in in MindSpore's place: a chip, and how many ranks meet."""
    monkeypatch.delenv("MS_SIMULATION_LEVEL", raising=False)

    def pretend(soc: str = "", ranks: int = 2) -> Recorder:
        recorder = Recorder(soc, ranks)
        monkeypatch.setitem(sys.modules, "mindspore", recorder.mindspore)
        monkeypatch.setitem(sys.modules, "mindspore.communication", recorder.communication)
        start_backend.cache_clear()
        return recorder

    yield pretend
    start_backend.cache_clear()


SET_DEVICE = [("set_device", "Ascend", 3), ("get_device_name", 3, "Ascend")]
RANKS = [("init",), ("get_group_size",), ("get_rank",)]
ORDER = {
    "Ascend910A": [*SET_DEVICE, ("precision_mode", "allow_fp32_to_fp16"), *RANKS],
    "Ascend910B2": [
        *SET_DEVICE, ("precision_mode", "must_keep_origin_dtype"), ("conv_allow_hf32", False), ("matmul_allow_hf32", False),
        ("set_deterministic", True), *RANKS,
    ],
}  # fmt: skip
ORDER["Ascend910_9391"] = ORDER["Ascend910B2"]


@pytest.mark.parametrize("soc", ORDER)
def test_calls_and_their_order_on_ascend(mindspore, monkeypatch, soc):
    """As a rank makes them: device, precision, determinism, then the other ranks."""
    recorder = mindspore(soc)
    monkeypatch.setenv("DEVICE_ID", "3")
    runtime = Runtime(devices=2, device_target="Ascend")
    ranks = _join(runtime)
    assert recorder.calls == ORDER[soc]
    assert (ranks.rank, ranks.size, ranks.device) == (1, 2, 3)
    assert backend_of(runtime, ranks.device).soc == soc  # the stage asks again, nothing is set twice
    assert recorder.calls == ORDER[soc]


def test_calls_on_the_cpu(mindspore, monkeypatch):
    recorder = mindspore()
    monkeypatch.setenv("DEVICE_ID", "1")
    monkeypatch.delenv("MS_DEV_HOST_BLOCKING_RUN", raising=False)
    _join(Runtime(devices=2, device_target="CPU"))
    assert recorder.calls == [("set_device", "CPU", 0), *RANKS]
    assert os.environ["MS_DEV_HOST_BLOCKING_RUN"] == "1"


def test_another_number_of_ranks_is_refused(mindspore, monkeypatch):
    mindspore("Ascend910A", ranks=4)
    monkeypatch.setenv("DEVICE_ID", "0")
    with pytest.raises(UserError, match="runtime.devices: 2, but 4 ranks"):
        _join(Runtime(devices=2, device_target="Ascend"))


@pytest.mark.parametrize(("device", "socs"), [("910", FIRST_910), ("A2/A3", LATER)])
def test_chips_by_name(device, socs):
    for soc in socs:
        backend = choose_backend(soc)
        assert (backend.device, backend.soc) == (device, soc)


@pytest.mark.parametrize("soc", ["Ascend310P3", "Ascend910C", "Ascend950", ""])
def test_unknown_chips_are_refused(soc):
    with pytest.raises(UserError, match=f"chip '{soc}' is not known"):
        choose_backend(soc)


def test_decisions():
    first, later, cpu = BACKENDS["910"], BACKENDS["A2/A3"], BACKENDS["CPU"]
    assert [b.saturates for b in (first, later, cpu)] == [True, False, False]
    assert [b.deterministic for b in (first, later, cpu)] == [False, True, True]
    assert first.products == ("float16",) and "bfloat16" in later.products and "bfloat16" not in cpu.products
    assert first.jit_options == {"backend": "GE"}
    assert later.jit_options == cpu.jit_options == {"backend": "ms_backend", "jit_level": "O0"}


def test_the_site_may_choose_the_compiler():
    assert choose_backend("Ascend910A", "ms_backend", "O1").jit_options == {"backend": "ms_backend", "jit_level": "O1"}
    assert choose_backend("Ascend910B2", "GE").jit_options == {"backend": "GE"}
    assert choose_backend("Ascend910B2", None, "O1").jit_options == {"backend": "ms_backend", "jit_level": "O1"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, "GE"), "runtime.jit_backend: 'GE' is a compiler for Ascend"),
        ((None, None, "O1"), "runtime.jit_level: 'O1' has no effect on the CPU"),
        (("Ascend910A", None, "O1"), "runtime.jit_level: 'O1' has no effect with runtime.jit_backend GE"),
    ],
)
def test_compilers_that_are_not_there_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        choose_backend(*arguments)


@pytest.mark.parametrize(
    ("device", "level", "dtype", "key"),
    [
        ("CPU", "O1", "bfloat16", "amp_dtype: 'bfloat16'"),
        ("910", "O2", "bfloat16", "amp_dtype: 'bfloat16'"),
        ("910", "O0", "float16", "amp_level: O0"),
    ],
)
def test_formats_that_a_device_lacks_are_refused(device, level, dtype, key):
    with pytest.raises(UserError, match=f"optimizer.{key} is not available on this device .{device}"):
        BACKENDS[device].require_training(level, dtype)


def test_formats_that_a_device_has():
    BACKENDS["CPU"].require_training("O0", "bfloat16")  # the format is not used
    for device in BACKENDS:
        BACKENDS[device].require_training("O1", "float16")
    BACKENDS["A2/A3"].require_training("O2", "bfloat16")


def test_what_was_in_force_is_recorded(mindspore, monkeypatch):
    mindspore("Ascend910B2")
    monkeypatch.setenv("HCCL_CONNECT_TIMEOUT", "1200")
    monkeypatch.delenv("HCCL_EXEC_TIMEOUT", raising=False)
    record = start_backend("Ascend", 0).record()
    environment = record.pop("environment")
    assert environment["HCCL_CONNECT_TIMEOUT"] == "1200" and "HCCL_EXEC_TIMEOUT" not in environment
    assert record == {
        "device": "A2/A3", "soc": "Ascend910B2", "precision_mode": "must_keep_origin_dtype", "allow_hf32": False,
        "jit_backend": "ms_backend", "jit_level": "O0", "deterministic": True, "overflow": "infnan",
        "products": ["float32", "float16", "bfloat16"], "skip_by": "branch", "cores": len(os.sched_getaffinity(0)),
    }  # fmt: skip


def test_record_in_one_line(mindspore):
    cores = len(os.sched_getaffinity(0))
    assert backend_text(BACKENDS["CPU"].record()) == f"CPU, compiler ms_backend O0, deterministic, {cores} cores"
    assert backend_text(choose_backend("Ascend910A").record()) == (
        f"910 (Ascend910A), compiler GE, precision allow_fp32_to_fp16, overflow saturation, not deterministic, {cores} cores"
    )


def test_a_device_that_cannot_be_had_is_refused(mindspore, monkeypatch):
    recorder = mindspore("Ascend910A")

    def refuse(*arguments):
        raise RuntimeError("no such device\nmore\n")

    recorder.mindspore.set_device = refuse
    recorder.mindspore.get_current_device = lambda: ("CPU", 0)
    with pytest.raises(UserError, match="device Ascend 7 cannot be used: no such device$"):
        start_backend("Ascend", 7)


def test_variables_of_other_launchers_are_not_inherited(capsys, monkeypatch):
    environment = dict.fromkeys(NOT_INHERITED, "x") | {"HOME": "/root"}
    assert prepare_environment(environment) == list(NOT_INHERITED)
    assert environment == {"HOME": "/root", "HCCL_CONNECT_TIMEOUT": "1200"}
    assert prepare_environment(environment) == []
    kept = {"HCCL_CONNECT_TIMEOUT": "300"}
    prepare_environment(kept)
    assert kept == {"HCCL_CONNECT_TIMEOUT": "300"}  # the user's
    monkeypatch.setenv("RANK_TABLE_FILE", "/etc/ranks.json")
    assert cli.main(["config", "--schema"]) == 0
    assert "RANK_TABLE_FILE" not in os.environ
    assert "RANK_TABLE_FILE is set and not used" in capsys.readouterr().err


def test_a_dry_run_of_mindspore_is_refused(monkeypatch, tmp_path):
    """Else the end is exit code 0 and a checkpoint of worthless weights."""
    monkeypatch.setenv("MS_SIMULATION_LEVEL", "1")
    message = "MS_SIMULATION_LEVEL=1 is set: .* unset MS_SIMULATION_LEVEL"
    for devices in (1, 2):
        with pytest.raises(UserError, match=message):
            run_on_devices(Runtime(devices=devices, device_target="CPU"), tmp_path, lambda *_: 0, lambda: None)
    with pytest.raises(UserError, match=message):
        start_backend("CPU", 0)
    monkeypatch.delenv("MS_SIMULATION_LEVEL")
    refuse_simulation()
