"""The model benchmark runs and its arithmetic is right."""

import re
import subprocess
import sys
from pathlib import Path

from cswin.model.variants import variant
from cswin.profile import profile

ROOT = Path(__file__).parents[2]


def run(tmp_path, *arguments):
    command = [sys.executable, ROOT / "benchmarks" / "model.py", *arguments]
    return subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=300)


def test_rates_and_operations(tmp_path):
    arguments = ["cswin_32_1121_digits_32", "--what", "forward", "--batch", "4", "--repeat", "2", "--by-operation"]
    done = run(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    seconds, images, rate = map(
        float, re.search(r"forward +([\d.]+) s +([\d.]+) images/s +([\d.]+) GFLOP/s", done.stdout).groups()
    )
    assert abs(images * seconds - 4) < 4 * (0.0006 / seconds + 0.01)  # seconds are printed to the millisecond
    operations = 2 * 4 * sum(part.macs for part in profile(variant("cswin_32_1121_digits_32")))
    assert abs(rate - operations / seconds / 1e9) < 0.05 + rate * 0.0006 / seconds
    kinds = dict(re.findall(r"^ +(\w[\w ]*?) +(\d+) +[\d.]+ ms", done.stdout, re.MULTILINE))
    assert int(kinds["MatMul"]) >= 5 * 4 + 1  # qkv, proj, fc1, fc2 and LePE of each block; the head
    assert int(kinds["all"]) == sum(int(n) for kind, n in kinds.items() if kind != "all")


def test_unknown_architecture_is_refused_in_one_line(tmp_path):
    done = run(tmp_path, "nothing")
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert "arch: 'nothing' is not known" in done.stderr
