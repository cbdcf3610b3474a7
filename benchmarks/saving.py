"""Times the saving of a training state: how long training waits, and how long until the state is on the disk.

    python benchmarks/saving.py [cswin_64_24322_small_224_report ...] [--repeat 5]

A state contains weights, two moments and the EMA, and the weights and EMA of the best epoch: 24 bytes per parameter. On an NPU the
copy to the host's memory is added; it is not measured here.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from cswin.model.variants import variant
from cswin.profile import profile
from cswin.run.states import StateFolder
from cswin.train.state import State

PARTS = 100  # arrays of each of the six sets


def measure(architecture: str, folder: Path, repeat: int) -> str:
    """A line of figures."""
    numbers = sum(part.parameters for part in profile(variant(architecture))) // PARTS
    trained = {f"part{i}": np.random.default_rng(i).standard_normal(numbers, dtype=np.float32) for i in range(4 * PARTS)}
    best = {f"best.{name}": array for name, array in list(trained.items())[: 2 * PARTS]}
    waits, states = [], StateFolder(folder / architecture, keep=2, say=print)
    for step in range(repeat):
        began = time.monotonic()
        copy = {name: array.copy() for name, array in trained.items()}
        states.save(State(step, copy | best, {}))
        waits.append(time.monotonic() - began)
        states.wait()
    began = time.monotonic()
    states.load()
    read, figures = time.monotonic() - began, states.figures
    return (
        f"{architecture}: {figures.bytes / 1e6:.0f} MB; training waits {statistics.median(waits):.3f} s ({max(waits):.3f} at most); "
        f"on the disk after {figures.seconds / figures.saves:.2f} s ({figures.slowest:.2f} at most); read and checked in {read:.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture", nargs="*", default=["cswin_64_24322_small_224_report"])
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="saves of each (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        for architecture in args.architecture:
            print(measure(architecture, Path(folder), args.repeat), flush=True)


if __name__ == "__main__":
    main()
