"""Stand-ins for CANN's libraries, with which MindSpore's dry run for Ascend works on any x86-64 machine."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent / "ascend"
PACKAGES = ("gcc", "g++", "binutils")
TOOLS = ("gcc", "g++", "nm", "strings", "c++filt", "ldd")
CORES = 16  # that MindSpore sees, see ascend/cores.c


def install() -> str | None:
    """Install Debian's packages if they are missing. Returns the reason why the stand-ins cannot be built here, or None."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return f"only for Linux on x86-64, this is {platform.system()} {platform.machine()}"
    if all(shutil.which(tool) for tool in TOOLS):
        return None
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return f"one of {', '.join(TOOLS)} is missing, and this is not root, or there is no apt-get"
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(
            ["timeout", "-k", "5", "300", "apt-get", *command], env=environment, capture_output=True, text=True
        )
    return None if done.returncode == 0 else f"apt-get cannot install {' '.join(PACKAGES)}: {done.stderr[-500:]}"


def build(folder: Path) -> dict[str, str]:
    """Build them in a folder. Returns the environment variables for a process that uses them."""
    done = subprocess.run(
        ["timeout", "-k", "5", "300", "bash", HERE / "build.sh", folder, sys.executable],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    before = {
        "LD_LIBRARY_PATH": folder / "cann/latest/lib64",
        "LD_PRELOAD": folder / "libcores.so",
        "PYTHONPATH": folder / "python",
    }
    paths = {name: os.pathsep.join(filter(None, (str(path), os.environ.get(name)))) for name, path in before.items()}
    return paths | {"ASCEND_SIM_CORES": str(CORES), "OMP_NUM_THREADS": "1"}
