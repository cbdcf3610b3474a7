"""MindSpore compiles the project's graphs for Ascend, with stand-ins for CANN; every check finds a fault that is put in."""

import os
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import ascend_stand_ins
import pytest
from conftest import ROOT
from recipes import DIGITS, REPORT, stage

from cswin.cli import main
from cswin.dry_run.checks import violations
from cswin.dry_run.kernels import Kernel, read_kernels
from cswin.dry_run.run import Compiled, Graph, Task, dry_run, succeeded, text
from cswin.errors import UserError

slow = pytest.mark.slow
SUPPORT = ROOT / "tests/support"
GIB = 1 << 30


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory) -> dict[str, str]:
    """The environment variables of a process that uses the stand-ins."""
    if reason := ascend_stand_ins.install():
        message = f"NO STAND-INS FOR CANN, SO NOTHING IS COMPILED FOR ASCEND: {reason}"
        if os.environ.get("CSWIN_REQUIRE_ASCEND_SIM"):
            pytest.fail(message)
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    return ascend_stand_ins.build(tmp_path_factory.mktemp("ascend"))


@pytest.fixture
def compile_for_ascend(stand_ins, monkeypatch, tmp_path):
    """`dry_run` with the stand-ins."""
    for name, value in stand_ins.items():
        monkeypatch.setenv(name, value)
    return lambda task, what, *command: dry_run(task, what, tmp_path / what, *command)


def digits(chip: str = "910", level: str = "O1", dtype: str = "float16", **runtime) -> Task:
    """The five blocks of the digits' network, batch 4 per device."""
    size = {"devices": 1, "accumulation": 1, "batch_size": 4, "eval_batch_size": 4, "device_target": "Ascend"} | runtime
    settings = {"amp_level": level, "amp_dtype": dtype, "global_batch": size["devices"] * size["accumulation"] * 4}
    return Task(*stage(DIGITS, optimizer=settings, augment={"mixup_group": 4}, runtime=size), chip)


def operators(compiled: Compiled) -> dict[str, set[str]]:
    """Operators of each graph."""
    return {graph.name: {kernel.operator for kernel in graph.kernels} for graph in compiled.graphs}


def require_good(compiled: Compiled) -> None:
    assert compiled.problem is None
    assert compiled.violations == []
    assert succeeded(compiled, 32 * GIB)


TRAINING = {  # float16 O1 with a branch: the network of the report, below
    "bfloat16, stage 3 recomputed": digits("A2", "O1", "bfloat16", skip_by="select", recompute=[3]),
    "float32": digits("A2", "O0"),
    "eight ranks, stream in bfloat16": digits("A2", "O2", "bfloat16", devices=8),
    "eight ranks, overflow flag, select": digits("910", devices=8, accumulation=2, skip_by="select"),
}


@slow
@pytest.mark.parametrize("task", TRAINING.values(), ids=TRAINING)
def test_training_step(compile_for_ascend, task):
    compiled = compile_for_ascend(task, "training")
    require_good(compiled)
    found, runtime = operators(compiled), task.runtime
    assert set(found) == ({"step"} if runtime.accumulation == 1 else {"step", "accumulate"})
    assert {"MatMul", "BatchMatMul", "Conv2D", "LayerNorm", "Adam"} <= found["step"]
    assert ("NPUGetFloatStatusV2" in found["step"]) == (task.chip == "910")
    assert ("ConditionSwitch" in found["step"]) == (runtime.skip_by == "branch")
    # Both gradients and the loss, and the overflow flag where the device has one.
    assert compiled.launches()["AllReduce"] == (0 if runtime.devices == 1 else 4 if task.chip == "910" else 3)
    assert compiled.peak > 0
    count = Counter(kernel.operator for graph in compiled.graphs for kernel in graph.kernels)
    assert count["Softmax"] - count["SoftmaxBackward"] == (
        2 if runtime.recompute else 0
    )  # stage 3 has two blocks of one branch


@slow
def test_evaluation(compile_for_ascend):
    compiled = compile_for_ascend(digits("A2", "O2", "bfloat16"), "evaluation")
    require_good(compiled)
    assert set(operators(compiled)) == {"evaluate"}


@slow
def test_what_ranks_exchange(compile_for_ascend):
    compiled = compile_for_ascend(digits(devices=8), "exchanges")
    require_good(compiled)
    assert compiled.libraries == {"AllGather": "HCCL", "Broadcast": "HCCL"}


@slow
def test_the_network_of_the_report(compile_for_ascend, capsys):
    """CSWin-S with the report's stripes, float16 O1, batch 128 on each of 8 devices."""
    task = Task(*stage(REPORT), "910")
    assert (task.product, task.runtime.batch_size, task.runtime.devices) == ("float16", 128, 8)
    compiled = compile_for_ascend(task, "training")
    with capsys.disabled():
        print("\n" + text(compiled, 32 * GIB))
    require_good(compiled)
    assert compiled.launches()["AllReduce"] == 4
    assert {"ConditionSwitch", "NPUGetFloatStatusV2"} <= operators(compiled)["step"]


@slow
def test_graph_engine(stand_ins, tmp_path):
    """On the first 910, MindSpore passes the step to CANN's graph engine. It becomes GE's operators; GE itself does not exist here."""
    calls = tmp_path / "calls"
    done = subprocess.run(
        [sys.executable, SUPPORT / "graph_engine.py"], cwd=tmp_path, text=True, capture_output=True,
        env=os.environ | stand_ins | {"ASCEND_SIM_SOC": "Ascend910A", "ASCEND_SIM_CALLS": str(calls),
            "PYTHONPATH": os.pathsep.join((stand_ins["PYTHONPATH"], str(ROOT), str(SUPPORT)))},
    )  # fmt: skip
    assert "The pointer[*graph_summary] is null" in done.stderr, done.stderr[-3000:]
    lines = calls.read_text().splitlines()
    assert any(line.startswith("COMPILEGRAPH") for line in lines)
    made = {line.split()[1] for line in lines if line.startswith("GE ")}
    assert {"MatMulV2", "BatchMatMul", "Conv2D", "NPUGetFloatStatusV2"} <= made


FAULTS = {
    "cpu": {("kernel on the CPU", "Erf")},
    "python": {("Python callback", "Custom"), ("kernel on the CPU", "Custom")},
    "float64": {("float64 tensor", "Cast"), ("float64 tensor", "Muls")},
    "product": {("product that is not float16", "MatMul")},
}


@slow
def test_planted_faults_are_found(compile_for_ascend):
    compiled = compile_for_ascend(tiny(), "training", planted(*FAULTS))
    assert compiled.problem is None
    assert {(violation.check, violation.operator) for violation in compiled.violations} == set.union(*FAULTS.values())
    assert any("planted_graph.py:" in violation.source for violation in compiled.violations)
    assert not succeeded(compiled, 32 * GIB)


@slow
def test_a_dynamic_shape_is_found(compile_for_ascend):
    compiled = compile_for_ascend(tiny(), "training", planted("dynamic"))
    assert "can not support dynamic shape graph" in compiled.problem
    assert ("dynamic shape", "NonZero") in {(violation.check, violation.operator) for violation in compiled.violations}


@slow
def test_without_a_fault_the_same_network_is_good(compile_for_ascend):
    require_good(compile_for_ascend(tiny(), "training", planted()))


def tiny() -> Task:
    task = digits()
    return replace(task, stage=task.stage.model_copy(update={"num_classes": 5}))


def planted(*faults: str) -> tuple[str, ...]:
    return (sys.executable, str(SUPPORT / "planted_graph.py"), *faults, "--")


@slow
def test_command(stand_ins, monkeypatch, tmp_path, capsys):
    """As a user gives it; only the evaluation is compiled here, to save time."""
    for name, value in stand_ins.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Task, "parts", ("evaluation",))
    assert main(["dry-run", str(DIGITS), "--devices", "2", "--chip", "A2", "--keep", str(tmp_path / "kept")]) == 0
    output = capsys.readouterr().out
    assert output.startswith(
        "digits, stage1: cswin_32_1121_digits_32, O0, products in float32, batch 32 x 1 on each of 2 devices"
    )
    assert "evaluation: compiled in" in output and "planned peak" in output and "of 64" in output
    assert list((tmp_path / "kept/evaluation/ir").rglob("*.ir"))
    assert main(["dry-run", str(DIGITS), "--keep", str(tmp_path / "kept")]) == 2
    assert "exists already" in capsys.readouterr().err


@slow
def test_without_cann(monkeypatch, capsys):
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    assert main(["dry-run", str(DIGITS), "--chip", "A2"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 2 and "a dry run needs CANN, but no NPU: install CANN 8.5.0" in error[0]


@slow
def test_what_a_chip_does_not_have_is_refused(compile_for_ascend):
    with pytest.raises(UserError, match="amp_dtype: 'bfloat16' is not available on this device"):
        compile_for_ascend(digits("910", "O1", "bfloat16"), "training")


@slow
def test_mindspore_reason(compile_for_ascend):
    """A child that fails: the reason of an exception, and of a process that was killed."""
    command = (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    compiled = compile_for_ascend(tiny(), "training", command)
    assert "ended with code -9" in compiled.problem and not succeeded(compiled, 32 * GIB)


def test_bad_arguments(tmp_path, capsys):
    for arguments in (["--stage", "nine"], ["--devices", "0"], ["--memory", "-1"]):
        assert main(["dry-run", str(DIGITS), *arguments]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


KERNEL = Kernel("MatMul", "aclnn", ("Float16",), ("Float16",), False, "Default/network-CSWin/stem", "a.py:1")


def test_text():
    graph = Graph(
        "step", 1, 12.3, (KERNEL, replace(KERNEL, library="runtime"), replace(KERNEL, operator="AllReduce", library="HCCL"))
    )
    sums = Graph("accumulate", 3, 2.0, (KERNEL,))
    compiled = Compiled("training", None, 30 * GIB, (sums, graph))
    lines = text(compiled, 32 * GIB).splitlines()
    assert lines == [
        "training: compiled in 14 s",
        "  4 kernels that compute, 1 of the runtime, 1 AllReduce per step",
        "  planned peak 30.00 GiB of 32, without workspaces of kernels",
    ]
    assert text(replace(compiled, peak=33 * GIB), 32 * GIB).endswith(": DOES NOT FIT")
    assert not succeeded(replace(compiled, peak=33 * GIB), 32 * GIB) and succeeded(compiled, 32 * GIB)
    assert text(replace(compiled, problem="why"), 32 * GIB) == "training: NOT COMPILED: why"


@pytest.mark.parametrize(
    ("changes", "product", "check"),
    [
        ({"library": "CPU"}, "float16", "kernel on the CPU"),
        ({"operator": "PyExecute"}, "float16", "Python callback"),
        ({"outputs": ("Float64",)}, "float16", "float64 tensor"),
        ({"dynamic": True}, "float16", "dynamic shape"),
        ({"inputs": ("Float32",)}, "float16", "product that is not float16"),
        ({"inputs": ("Float16", "Float32")}, "float16", "product that is not float16"),
        ({}, "bfloat16", "product that is not bfloat16"),
        ({"scope": "Default/network-CSWin/head-Linear/apply_to-_Linear"}, "float16", "product that is not float16"),
    ],
)
def test_each_check(changes, product, check):
    (found,) = violations([replace(KERNEL, **changes)], product)
    assert (found.check, found.count) == (check, 1)


def test_a_good_kernel_breaks_no_check():
    scopes = (
        "Default/network-CSWin/head-Linear/x",
        "Gradients/Default/network-CSWin/blocks-CellList/0-Block/lepe-ConvolutionLePE",
    )
    good = [replace(KERNEL, scope=scope, inputs=("Float32",)) for scope in scopes]
    assert violations([KERNEL, *good], "float16") == []


GRAPH = """# IR entry: @kernel_graph0
  %1(a) = PrimFunc_MatMul(%0, Tensor(shape=[2, 2], dtype=Float32, value=
[[ 1.0  1.0]
 [ 1.0  1.0]]), Bool(0)) primitive_attrs: {stream_id: U32(0)} cnode_primal_attrs: {unique_id: "7"}
      : (<Tensor[Float16], (2, 2)>, <Tensor[Float32], (2, 2)>) -> (<Tensor[Float16], (2, 2)>)
      : (<Float16xDefaultFormat{2, 2}>, <Float32xDefaultFormat{2, 2}>) -> (<Float16xDefaultFormat{2, 2}>)
      # Fullname with scope: (Default/head-Linear/MatMul-op0)
      # In file /home/me/cswin/model/cswin.py:12, 11~20/    return self.head(self.norm(x))/
      # In file /home/me/cswin/model/layers.py:80, 4~9/    x + y/
      # In file /lib/site-packages/mindspore/ops.py:9, 4~9/    a + b/
  %2(b) = Depend(%1, %0) primitive_attrs: {}
      : (<Tensor[Float64], (2)>) -> (<Tensor[Float64], (2)>)
  %3(c) = NonZero(%1) primitive_attrs: {stream_id: U32(0)} cnode_primal_attrs: {forward_unique_id: "7"}
      : (<Tensor[Float16], (2, 2)>) -> (<Tensor[Int64], (-1, 2)>)
      : (<Float16xDefaultFormat{2, 2}>) -> (<Int64xDefaultFormat{-1, 2}>)
  %4(d) = Erf(%1) primitive_attrs: {primitive_target: "CPU"}
      : (<Tensor[Float16], (2, 2)>) -> (<Tensor[Float16], (2, 2)>)
}
"""


def test_reading_a_graph(tmp_path):
    file = Path(tmp_path, "graph_build_0.ir")
    file.write_text(GRAPH)
    scope = "Default/head-Linear/MatMul-op0 self.head"
    assert list(read_kernels(file, {"MatMul": "aclnn", "NonZero": "aclop", "Erf": "aclnn"})) == [
        Kernel("MatMul", "aclnn", ("Float16", "Float32"), ("Float16",), False, scope, "/home/me/cswin/model/layers.py:80"),
        Kernel("NonZero", "aclop", ("Float16",), ("Int64",), True, scope, "an unknown line"),
        Kernel("Erf", "CPU", ("Float16",), ("Float16",), False, "", "an unknown line"),
    ]
