"""The commit of the code, and the versions of the installed packages, for the records of a run."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from cswin import __version__

PACKAGES = ("mindspore", "numpy", "pillow", "simplejpeg", "numba", "snakemake")
CANN_FOLDERS = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
CANN_DEFAULT = "/usr/local/Ascend/ascend-toolkit/latest"
CANN_FILES = ("*-linux/ascend_toolkit_install.info", "ascend_toolkit_install.info", "compiler/version.info")


def git_commit(folder: str | Path | None = None) -> dict | None:
    """The commit that the package's code comes from.

    Args:
        folder: a folder with tracked code (default: this package's).

    Returns:
        {"commit": 40 hex digits, "dirty": whether a tracked file of the repository differs from it}; None where the code is not
        tracked by git (an installed package, an archive without history) or git does not answer.
    """
    folder = Path(folder) if folder else Path(__file__).parent
    # An installed package may be inside another git repository: only tracked code has a commit.
    if not _git(folder, "ls-files"):
        return None
    commit, status = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--untracked-files=no")
    if commit is None or status is None:
        return None
    return {"commit": commit.strip(), "dirty": bool(status.strip())}


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of git, None if it fails. Optional locks are off, so that it never disturbs a commit in progress."""
    try:
        answer = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=60,
                                env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"}, check=True)  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout


def versions() -> dict[str, str]:
    """Versions of cswin, Python, the packages and CANN, as far as they are installed."""
    found = {"cswin": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    cann = cann_version()
    return found | ({"cann": cann} if cann else {})


def cann_version() -> str | None:
    """The version in the folder of Ascend's toolkit; None if it is not installed."""
    folders = [os.environ[name] for name in CANN_FOLDERS if os.environ.get(name)] or [CANN_DEFAULT]
    for folder in folders:
        for pattern in CANN_FILES:
            for file in sorted(Path(folder).glob(pattern)):
                for line in file.read_text(errors="replace").splitlines():
                    key, _, value = line.partition("=")
                    if key.strip().lower() == "version" and value.strip():
                        return value.strip()
    return None
