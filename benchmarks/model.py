"""Times the forward pass and the training step of a variant, and a matrix product of the machine for comparison.

    python benchmarks/model.py cswin_64_12211_tiny_224 --batch 8

The training step is the project's own (`cswin.train.step.TrainStep`: forward, backward, clipping, AdamW, EMA), in graph mode;
`compile` is the time of its first call minus that of a later one. The reference is the float32 product of two 2048 x 2048 matrices,
NumPy's or MindSpore's, whichever is faster (NumPy's library does not recognise every processor). It is timed between the repetitions
in the same process and averaged, so a busy machine slows both: compare the ratios. Operations are counted as by `cswin profile`, two
per multiply-accumulate; a step counts as three forward passes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cswin.errors import UserError
from cswin.model.variants import variant
from cswin.profile import LEVEL_BYTES, profile

REPORT = Path(__file__).parents[1] / "config" / "imagenet" / "report_small_224.yaml"
YARDSTICK = 2048  # side of the matrices: large enough for the full speed of any BLAS


@dataclass(frozen=True)
class Timing:
    """Seconds of each repetition, and of the yardstick's product measured beside each."""

    name: str
    operations: float
    seconds: tuple[float, ...]
    yardstick: tuple[float, ...]

    def line(self, batch: int) -> str:
        """images/s, GFLOP/s and ratio; medians over the repetitions."""
        seconds, yardstick = statistics.median(self.seconds), statistics.median(self.yardstick)
        rate, machine = self.operations / seconds / 1e9, 2 * YARDSTICK**3 / yardstick / 1e9
        ratios = [self.operations / s / (2 * YARDSTICK**3 / y) for s, y in zip(self.seconds, self.yardstick, strict=True)]
        return (
            f"{self.name:8} {seconds:8.3f} s {batch / seconds:8.2f} images/s {rate:8.1f} GFLOP/s"
            f"   machine {machine:6.1f} GFLOP/s   ratio {statistics.median(ratios):.3f}"
            f"  (from {min(ratios):.3f} to {max(ratios):.3f})"
        )


def seconds_of(function: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def matrix_products() -> tuple[Callable[[], object], ...]:
    """The yardstick by NumPy and by MindSpore."""
    import mindspore as ms
    from mindspore import ops

    a = np.random.default_rng(0).random((YARDSTICK, YARDSTICK), np.float32)
    b, matmul = ms.Tensor(a), ops.MatMul()

    @ms.jit
    def product(b):
        return matmul(b, b)[0, 0]  # only one number is copied back

    return lambda: a @ a, lambda: product(b).asnumpy()


def measure(name: str, operations: float, function: Callable[[], object], repeat: int) -> Timing:
    """Time the function, each repetition between two rounds of the yardstick."""
    products = matrix_products()

    def yardstick() -> float:
        return min(statistics.mean(seconds_of(product) for _ in range(5)) for product in products)

    first, second = seconds_of(function), seconds_of(function)
    print(f"{name:8} {first - second:8.1f} s to compile", flush=True)
    yardstick()
    beside, seconds = [yardstick()], []
    for _ in range(repeat):
        seconds.append(seconds_of(function))
        beside.append(yardstick())
    means = [(x + y) / 2 for x, y in zip(beside[:-1], beside[1:], strict=True)]
    return Timing(name, operations, tuple(seconds), tuple(means))


def by_operation(function: Callable[[], object], repeat: int) -> list[tuple[str, int, float]]:
    """Kind of operation, their number, milliseconds per call; for each operation the shortest time of the repetitions."""
    from mindspore import profiler

    totals = defaultdict(lambda: [0, 0.0])
    with tempfile.TemporaryDirectory() as folder:
        keep = profiler.tensorboard_trace_handler(folder)
        with profiler.profile(activities=[profiler.ProfilerActivity.CPU], on_trace_ready=keep):
            for _ in range(repeat):
                function()
        for file in Path(folder).glob("*/FRAMEWORK/cpu_op_execute_timestamp_*.txt"):
            for line in file.read_text().splitlines():  # scope/Kind-opN;side;start,milliseconds,thread start,…
                name, _, runs = line.strip().split(";")
                total = totals[name.rsplit("/", 1)[-1].split("-")[0]]
                total[0] += 1
                total[1] += min(float(run.split(",")[1]) for run in runs.split())
    return sorted(((kind, *total) for kind, total in totals.items()), key=lambda row: -row[2])


def print_operations(rows: list[tuple[str, int, float]]) -> None:
    """Print the kinds that take 1 % or more, and the sum of the others."""
    whole = sum(milliseconds for _, _, milliseconds in rows)
    shown = [row for row in rows if row[2] >= 0.01 * whole]
    rest = [row for row in rows if row[2] < 0.01 * whole]
    shown += [("the rest", sum(r[1] for r in rest), sum(r[2] for r in rest)), ("all", sum(r[1] for r in rows), whole)]
    for kind, count, milliseconds in shown:
        print(f"    {kind:24}{count:6}{milliseconds:10.1f} ms{100 * milliseconds / whole:7.1f} %")


def functions(args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """The compiled forward pass and training step, on fixed random data."""
    import mindspore as ms

    from cswin.config.files import read_yaml
    from cswin.config.settings import Optimizer
    from cswin.distributed.backend import start_backend
    from cswin.inference import Predictor
    from cswin.model.cswin import CSWin
    from cswin.model.drop_path import drop_path_factors, drop_path_rates
    from cswin.model.precision import precision
    from cswin.model.weights import initial_weights
    from cswin.train.step import TrainStep

    start_backend("CPU")
    arch, rng, formats = variant(args.name), np.random.default_rng(0), precision(args.amp_level)
    weights = initial_weights(arch, rng)
    predictor = Predictor(arch, args.batch, formats, args.formulation)
    recipe = read_yaml(REPORT)["optimizer"] | {"amp_level": args.amp_level}
    step = TrainStep(CSWin(arch, formats, args.formulation), Optimizer(**recipe), np.full(1, 1e-6, np.float32))
    step.load(step.arrays() | weights | {f"ema.{name}": value for name, value in weights.items()})
    images = rng.standard_normal((args.batch, *predictor.image_shape), np.float32)
    targets = rng.dirichlet(np.ones(arch.num_classes), args.batch).astype(np.float32)
    factors = drop_path_factors(drop_path_rates(0.2, arch.depth), args.batch, rng)
    inputs, on_device = [ms.Tensor(array) for array in (images, targets, factors)], predictor.on_device(weights)
    return {"forward": lambda: predictor.logits(on_device, images), "train": lambda: step(*inputs).asnumpy()}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default="cswin_64_12211_tiny_224", help="architecture (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="images (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="timed repetitions (default: %(default)s)")
    parser.add_argument("--what", choices=["forward", "train"], help="time one of the two only")
    parser.add_argument("--formulation", default="CPU", choices=["CPU", "Ascend"], help="formulation (default: %(default)s)")
    parser.add_argument("--amp-level", default="O0", choices=list(LEVEL_BYTES), help="number formats (default: %(default)s)")
    parser.add_argument("--by-operation", action="store_true", help="then profile, with MindSpore's profiler")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; the load average shows how busy the machine was."""
    args = parse(argv)
    os.environ.setdefault("GLOG_v", "3")
    try:
        operations = 2 * args.batch * sum(part.macs for part in profile(variant(args.name)))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(
        f"{args.name}, batch {args.batch}, {args.amp_level}, formulation {args.formulation}, {os.cpu_count()} cores", flush=True
    )
    for name, function in functions(args).items():
        if args.what in (None, name):
            work = operations * (3 if name == "train" else 1)
            print(measure(name, work, function, args.repeat).line(args.batch), flush=True)
            if args.by_operation:
                print_operations(by_operation(function, args.repeat))
    print("load average over 1, 5 and 15 minutes:", *(f"{load:.1f}" for load in os.getloadavg()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
