"""What people's machines bring: long TMPDIR, a HOME that cannot be written, damaged compiled kernels."""

import os
import subprocess
import sys
import tempfile
from multiprocessing import util

import pytest

from cswin.distributed import sockets
from cswin.errors import UserError

POOL = """
import tempfile
from cswin.data.loader.workers import worker_pool
if __name__ == "__main__":
    with worker_pool("process", 1) as pool:
        print(pool.submit(abs, -3).result(), tempfile.gettempdir())
"""


def test_worker_processes_with_a_long_tmpdir(tmp_path):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    (tmp_path / "pool.py").write_text(POOL)
    done = subprocess.run(
        [sys.executable, tmp_path / "pool.py"],
        env=os.environ | {"TMPDIR": str(long)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split() == ["3", str(long)], done.stderr  # what is no socket still goes there
    assert not list(long.iterdir())


def test_no_short_folder_is_said(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/" + "y" * 90)
    monkeypatch.setattr(sockets, "SHORT", ("/nowhere",))
    with pytest.raises(UserError, match=r"TMPDIR=/y+: too long .*91 bytes, 75 are possible.*worker_kind: thread"):
        sockets.use_short_socket_folder()


def test_the_interface_of_multiprocessing_that_is_used():
    assert len(os.path.basename(util.get_temp_dir())) == len("pymp-12345678")  # noqa: PTH119


KERNEL = """
import numpy as np
from cswin.compiled import compiled

def _double(values):
    for i in range(len(values)):
        values[i] = 2 * values[i]

double = compiled(_double)
"""
CALL = """
import numpy as np, kernel
values = np.arange(3.0)
kernel.double(values)
print(values.tolist(), sum(kernel.double.stats.cache_hits.values()))
"""


@pytest.fixture
def kernel(tmp_path):
    """A kernel in a folder of its own; a function that runs it in a new process: stdout and stderr."""
    (tmp_path / "kernel.py").write_text(KERNEL)

    def run() -> tuple[str, str]:
        environment = os.environ | {
            "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
            "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
        }
        done = subprocess.run([sys.executable, "-c", CALL], env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip(), done.stderr

    run()
    return run, sorted((tmp_path / "cache").rglob("*.nb?"))


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("content", [b"not a pickle", None])
def test_damaged_kernels_are_compiled_again(kernel, suffix, content):
    run, files = kernel
    assert {file.suffix for file in files} == {".nbi", ".nbc"}
    assert run() == ("[0.0, 2.0, 4.0] 1", "")  # from the cache
    [file] = [file for file in files if file.suffix == suffix]
    file.write_bytes(file.read_bytes()[:-7] if content is None else content)
    out, said = run()
    assert out == "[0.0, 2.0, 4.0] 0"
    assert said.count("are damaged") == 1 and "Traceback" not in said
    assert run() == ("[0.0, 2.0, 4.0] 1", "")  # whole again


@pytest.mark.slow
def test_home_that_cannot_be_written(workspace, monkeypatch):
    monkeypatch.setenv("HOME", "/dev/null/nobody")
    assert workspace.planned("results/final_acc.csv")
