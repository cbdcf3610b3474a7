"""Batches that cannot fit into the memory are refused before any work, others are not."""

import psutil
import pytest

from cswin.distributed import memory
from cswin.distributed.memory import host_memory, require_memory
from cswin.errors import UserError
from cswin.inference import Predictor
from cswin.model.variants import Architecture

# As in tests/model/test_profile.py: one block of stage 1, its tensors counted on paper, and the pixels as float32 and as bytes.
ARCH = Architecture(8, (2, 1, 1, 1), (2, 2, 2, 1), (2, 2, 2, 2), image_size=32)
BLOCK = 64 * (2 * 8 + 3 * 8 + 3 * 8 + 32 + 32 + 2 * 16) * 4
PIXELS = 3 * 32 * 32 * 5


@pytest.mark.parametrize("fits", [100, 1])
def test_what_cannot_fit_is_refused_with_the_largest_that_could(monkeypatch, fits):
    monkeypatch.setattr(memory, "host_memory", lambda: fits * (BLOCK + PIXELS))
    require_memory(ARCH, fits, "CPU")
    with pytest.raises(UserError, match=rf"eval_batch_size, --batch\) need .* choose at most {fits},"):
        require_memory(ARCH, fits + 1, "CPU")


def test_a_device_has_memory_of_its_own(monkeypatch):
    monkeypatch.setattr(memory, "host_memory", lambda: 1000 * PIXELS)
    monkeypatch.setattr(memory, "device_memory", lambda target: 10 * BLOCK)
    require_memory(ARCH, 10, "Ascend")
    with pytest.raises(UserError, match="the Ascend device has .* choose at most 10,"):
        require_memory(ARCH, 11, "Ascend")
    monkeypatch.setattr(memory, "device_memory", lambda target: None)
    require_memory(ARCH, 1000, "Ascend")
    with pytest.raises(UserError, match="this machine has"):
        require_memory(ARCH, 1001, "Ascend")


def test_nothing_is_refused_where_memory_is_not_known(monkeypatch):
    monkeypatch.setattr(memory, "host_memory", lambda: None)
    require_memory(ARCH, 10**12, "CPU")


def test_the_network_is_not_even_built_for_it():
    """Training, `evaluate` and `predict` all compute with a Predictor."""
    with pytest.raises(UserError, match=r"1,000,000,000 images at a time \(runtime.eval_batch_size, --batch\)"):
        Predictor(ARCH, 10**9)


def test_a_container_s_limit_counts(monkeypatch, tmp_path):
    """The nearest limit of the groups around a job, in both versions of control groups."""
    assert 0 < host_memory() <= psutil.virtual_memory().total
    (tmp_path / "job/step").mkdir(parents=True)
    for folder, limit in (("", "9000000"), ("job", "5000"), ("job/step", "max")):
        (tmp_path / folder / "memory.max").write_text(limit + "\n")
    monkeypatch.setitem(memory.LIMITS, "", (str(tmp_path), "memory.max"))
    monkeypatch.setattr(memory.Path, "read_text", patched(memory.Path.read_text, "0::/job/step\n"))
    assert host_memory() == 5000
    (tmp_path / "job/memory.max").unlink()
    assert host_memory() == 9_000_000


def patched(read_text, groups):
    return lambda path, *arguments: groups if str(path) == "/proc/self/cgroup" else read_text(path, *arguments)
