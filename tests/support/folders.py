"""The content of folders, and a folder on a small disk."""

import os
import subprocess
from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def on_small_disk(folder: Path, megabytes: int, script: str) -> subprocess.CompletedProcess:
    """Run a shell script with a small disk mounted at `folder`; only the script sees the mount, which ends with it."""
    folder.mkdir(exist_ok=True)
    kept = folder.with_name(f"{folder.name}.kept")
    mount = f"cp -r {folder} {kept}; mount -t tmpfs -o size={megabytes}m tmpfs {folder} && cp -r {kept}/. {folder} && echo mounted; {script}"
    own = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--user", "--map-root-user"]
    done = subprocess.run(
        [*own, "sh", "-c", mount],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
        env=os.environ | {"GLOG_v": "3"},
    )
    assert "mounted" in done.stdout, done.stdout
    return done
