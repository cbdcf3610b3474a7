"""Checks b to g, on the run's own training step, loader and ranks. Check a: `cswin.preflight.golden`.

All ranks call the same functions in the same order, and get the same results.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops

from cswin.distributed.backend import Backend
from cswin.distributed.memory import device_memory, host_megabytes
from cswin.distributed.ranks import Ranks
from cswin.estimate import device_bytes
from cswin.preflight.result import NOTED, Check, judged, unchecked
from cswin.preflight.site import BATCHES, SKIPPED, Rates, Site
from cswin.run.states import StateFolder
from cswin.train.state import State

FORCED_SCALE = 2.0**40  # of the loss: gradients leave float16, and their norm stays far inside float32
NUMBERS = 100_003  # that ranks exchange; no number of ranks divides it
WAIT = 0.02  # share of a step in which it may wait for the loader
FULL = 0.9  # share of the device's memory that training may fill: the rest is for fragments and for evaluation
MEGA, GIBI = 1e6, 2.0**30


def overflow(site: Site, rates: Rates) -> list[Check]:
    """b: an overflow on the last rank alone skips the step on every rank, and the steps of `rates` skip none."""
    step, ranks = site.step, site.ranks
    site.restart()
    weights = [parameter.asnumpy().tobytes() for parameter in step.weights]
    if ranks.rank == ranks.size - 1:
        ops.assign(step.loss_scale, Tensor(FORCED_SCALE if step.scaled else np.finfo(np.float32).max, ms.float32))
    skipped = int(site.of_all(np.frombuffer(site.take(0), np.float32)[SKIPPED]).sum())
    kept = site.of_all([parameter.asnumpy().tobytes() for parameter in step.weights] == weights).all()
    normal = int(site.of_all(rates.skipped).max())
    return [
        judged(
            "b", "ranks that skip a step in which one rank overflows", skipped, ranks.size, kept and skipped == ranks.size,
            "Do not train: the device hides overflows or the ranks do not share them, so weights would be damaged unseen. Send us this "
            "page. amp_dtype bfloat16 (A2, A3) needs no loss scale",
        ),
        judged(
            "b", "normal steps that are skipped", normal, 0, normal == 0,
            "Lower optimizer.loss_scale. If steps are still skipped, the device reports overflows that do not happen: send us this page",
        ),
    ]  # fmt: skip


def exchanges(ranks: Ranks, all_reduce) -> list[Check]:
    """c: numbers that every rank knows in advance, through each kind of exchange.

    `all_reduce` is that of the training step, None on one rank. A sum of small integers is exact in any order.
    """
    what = "numbers that arrive wrong, through"
    if ranks.size == 1:
        return [unchecked("c", f"{what} exchanges of ranks", "one process exchanges nothing")]
    rng = np.random.default_rng(1)
    words = rng.integers(-(2**31), 2**31, NUMBERS).astype(np.int32)
    floats = rng.standard_normal(NUMBERS).astype(np.float32)
    most = 2**23 // ranks.size  # sums are exact in float32, not in fewer bits
    summands = rng.integers(-most, most, (ranks.size, NUMBERS)).astype(np.float32)
    copy = Parameter(Tensor(floats if ranks.first else np.zeros_like(floats)), name="copy")
    numbers = ranks.follow_first(words if ranks.first else np.zeros_like(words), [copy])
    last = "é" if ranks.rank == ranks.size - 1 else None
    wrong = {
        "AllGather": np.count_nonzero(words != numbers),
        "Broadcast": np.count_nonzero(copy.asnumpy() != floats),
        "AllReduce": np.count_nonzero(all_reduce(Tensor(summands[ranks.rank])).asnumpy() != summands.sum(0)),
        "agreements": (ranks.agree(last) != "é") + (not ranks.same([words])) + ranks.same([words[ranks.rank]]),
    }
    if not ranks.agree("wrong" if any(wrong.values()) else None):  # it relies on exact counts
        wrong["AllGather"] = np.count_nonzero(ranks.gather(words[ranks.part]) != words)
    advice = "Do not train. Check the network between devices and nodes (hccn_tool), and that all nodes have the same versions"
    anywhere = {kind: ranks.agree("on another rank" if total else None) for kind, total in wrong.items()}
    return [judged("c", f"{what} {k}", int(n) or anywhere[k] or 0, 0, not anywhere[k], advice) for k, n in wrong.items()]


def same_bits(site: Site, backend: Backend) -> list[Check]:
    """d: two runs of the same steps from the same start."""
    results = []
    for _ in range(2):
        site.restart()
        results.append(([site.take(number) for number in range(BATCHES)], site.digest()))
    differing = int(site.of_all(results[0] != results[1]).sum())
    expected = "should be deterministic: send us this page" if backend.deterministic else "makes no promise of equal bits"
    advice = f"Two runs will not give equal bits here, nor will a resumed one. Training is possible. This device {expected}"
    return [judged("d", f"ranks where two runs of {BATCHES} steps differ in bits", differing, 0, differing == 0, advice)]


def memory(site: Site, rates: Rates) -> list[Check]:
    """e: measured against computed."""
    runtime, config = site.trainer.runtime, site.trainer.config
    host, requested = float(site.of_all(rates.host).max()) / MEGA, host_megabytes(runtime.workers)
    what = "host memory of a device's process with its workers, MB (bound: what its job requests)"
    advice = "Request more host memory than the workflow does (--set-resources), or lower runtime.workers or runtime.prefetch"
    checks = [judged("e", what, round(host), requested, host <= requested, advice)]
    if runtime.device_target == "CPU":
        return [*checks, unchecked("e", "device memory", "the CPU has no memory of its own")]
    peak = float(site.of_all(ms.runtime.max_memory_allocated()).max()) / GIBI
    total = (device_memory(runtime.device_target) or math.inf) / GIBI
    what = f"peak of device memory, GiB (computed: at least {device_bytes(config, runtime) / GIBI:.1f}; bound: 90 % of the device's)"
    advice = "Halve runtime.batch_size and double runtime.accumulation: the same batches"
    return [*checks, judged("e", what, peak, FULL * total, peak <= FULL * total, advice)]


def speed(site: Site, rates: Rates) -> list[Check]:
    """f: images/s over all devices (the slowest rank counts), waiting for images, and the time of compilation."""
    batch = site.trainer.config.optimizer.global_batch
    step, loader, both = (batch / float(site.of_all(seconds).max()) for seconds in (rates.step, rates.loader, rates.both))
    wait, compiling = float(site.of_all(rates.wait).max()), float(site.of_all(site.first_step).max()) - batch / step
    slow = "Images are prepared too slowly: raise runtime.workers, and check the disk and the job's cores (docs/devices.md)"
    return [
        Check("f", "images/s, training step alone", step, None, NOTED),
        judged("f", "images/s, loader alone (bound: the step's)", loader, step, loader >= step, slow),
        Check("f", "images/s, both together", both, None, NOTED),
        judged("f", "share of the time in which the step waits for images", wait, WAIT, wait <= WAIT, slow),
        Check("f", "seconds to compile the training step", compiling, None, NOTED),
    ]


def resumption(site: Site, repeats: bool) -> list[Check]:
    """g: a saved and loaded state is the same, and so is the step after it, to the bit.

    The state is taken after a step and a change of the loss scale, as an overflow makes it. Before it is loaded, all values of the
    training step are overwritten with NaN. All ranks load the file here; a stage distributes it from the first rank. If steps do not
    repeat their bits (check d), only the state is compared.
    """
    step, ranks = site.step, site.ranks
    site.restart()
    site.take(0)
    if step.scaled:
        ops.assign(step.loss_scale, Tensor(float(step.loss_scale.asnumpy()) / 2, ms.float32))
    states, saved, arrays = StateFolder(site.folder, keep=2, say=print), site.digest(), step.arrays()
    if ranks.first:
        states.save(State(1, arrays, {}), background=False)
    ranks.agree(None)  # the file is complete
    next_step = site.take(1), site.digest()
    nothing = {name: np.full_like(array, np.nan) for name, array in arrays.items()}
    step.load(nothing | states.look().arrays, running=True)
    other = int(site.of_all(site.digest() != saved).sum())
    differing = int(site.of_all((site.take(1), site.digest()) != next_step).sum())
    advice = "Do not train: a resumed stage would not continue as it was. Check the disk of results/, and send us this page"
    what = "ranks where the step after resumption differs in bits"
    return [
        judged("g", "ranks where a saved and loaded state differs in bits", other, 0, other == 0, advice),
        judged("g", what, differing, 0, differing == 0, advice)
        if repeats
        else unchecked("g", what, "the same step twice gives other bits on this device (check d), so this cannot be compared"),
    ]
