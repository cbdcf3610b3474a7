"""`make` and the Python that it is given: checked first, and no half-made environment stays."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Stands for Python: `-m venv` makes an environment whose python is this script again; what `-m pip install` does is the test's.
PYTHON = """#!/bin/sh
case "$1 $2" in
  "-c import sys"*) echo {right} ;;
  "-c import ensurepip"*) exit 0 ;;
  "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit {venv} ;;
  "-m pip") [ "$3" = check ] || {install} ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    for name in ("Makefile", "pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "my python").mkdir()

    def run(python=None, right="True", install="true", venv=0):
        stand_in = tmp_path / "my python/python3"
        stand_in.write_text(PYTHON.format(right=right, install=install, venv=venv))
        stand_in.chmod(0o755)
        done = subprocess.run(
            ["make", ".venv/.complete", f"PYTHON={python or stand_in}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode == 0, done.stdout

    return run


@pytest.mark.parametrize("python", ["/bin/false", "/bin/true", "/nowhere/python3"])
def test_what_is_no_python_is_named(make, tmp_path, python):
    good, said = make(python)
    assert not good and f"{python} is no Python 3.11 or 3.12" in said and "venv package" not in said
    assert not (tmp_path / ".venv").exists()


def test_another_version_is_refused_before_anything_is_made(make, tmp_path):
    good, said = make(right="False")
    assert not good and "is no Python 3.11 or 3.12" in said and not (tmp_path / ".venv").exists()
    assert make()[0], "it does not stand in the way of the right one"


@pytest.mark.parametrize(
    ("version", "right"),
    [((3, 10, 9), False), ((3, 11, 0), True), ((3, 12, 7), True), ((3, 13, 0), False), ((2, 7, 18), False)],
)
def test_which_versions_are_right(version, right):
    text = (ROOT / "Makefile").read_text()
    check = next(line.split(" := ", 1)[1] for line in text.splitlines() if line.startswith("VERSION_CHECK"))
    code = f"import sys; sys.version_info = {version}; exec({check!r})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == f"{right}\n"


@pytest.mark.parametrize("failure", [{"install": "exit 1"}, {"venv": 1}])
def test_an_environment_that_fails_is_removed(make, tmp_path, failure):
    assert not make(**failure)[0]
    assert not (tmp_path / ".venv").exists()
    assert make()[0] and (tmp_path / ".venv/.complete").exists()


def test_an_environment_whose_make_was_killed_is_made_anew(make, tmp_path):
    make(install="kill -9 $PPID; exit 1")  # the shell of the recipe, before it can clean up
    assert (tmp_path / ".venv/.unfinished").exists() and not (tmp_path / ".venv/.complete").exists()
    (tmp_path / ".venv/half").touch()
    assert make()[0] and not (tmp_path / ".venv/half").exists()


def test_a_finished_environment_survives_a_failed_update(make, tmp_path):
    assert make()[0]
    os.utime(tmp_path / ".venv/.complete", (1, 1))  # older than requirements.txt, on a clock of any resolution
    (tmp_path / ".venv/bin/python").write_text(PYTHON.format(right="True", install="exit 1", venv=0))
    assert not make()[0]
    assert (tmp_path / ".venv/bin/python").exists()


def test_somebody_s_environment_of_another_python_is_not_removed(make, tmp_path):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").write_text("#!/bin/sh\necho False\n")
    (tmp_path / ".venv/bin/python").chmod(0o755)
    good, said = make()
    assert not good and "rm -rf .venv" in said and (tmp_path / ".venv/bin/python").exists()
