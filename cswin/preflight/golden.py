"""Check a: the network's logits, loss and gradient on this device against values of the authors' PyTorch code (float64).

Where the bounds come from. They are simulated on the CPU, once per golden network and number format (tests/support/rounding.py): the
inputs and results of all products are rounded to the format's bits, forward and backward, with the rounding grid shifted at random,
and the errors of logits and gradient are measured. The bound is five times their root mean square over the draws (shipped: one
draw). A device may round twice where the simulation rounds once, which makes errors sqrt(2) times as large: the bound is 3.5 standard
deviations of such a device. The bound of the loss follows from that of the logits: its slope for the logits is softmax - target.
Errors are relative to the authors' values:

    logits: largest difference / largest logit; loss: difference / loss; gradient: norm of the difference / norm.

In float16 and bfloat16 the rounding of products hides small faults in LayerNorm and GELU, which are computed in float32 at every
level. So both layers are compared with float64 directly. Their bound is the geometric mean of float32's rounding error and of the
effect of the nearest fault: MindSpore's default epsilon 1e-7 for LayerNorm, and the tanh formula for GELU.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor
from scipy.special import erf

from cswin.config.settings import Optimizer
from cswin.distributed.backend import Backend
from cswin.distributed.ranks import Ranks
from cswin.inference import Predictor
from cswin.model.cswin import CSWin
from cswin.model.formulation import LAYER_NORM_EPSILON
from cswin.model.layers import Gelu, LayerNorm
from cswin.model.precision import precision
from cswin.model.variants import Architecture
from cswin.model.weights import GROUPS
from cswin.preflight.result import Check, judged
from cswin.train.step import TrainStep

FOLDER = Path(__file__).parent / "data"
FILES = ("two_branch",)
SAMPLES = 64  # numbers of each parameter's gradient that are compared
WIDTH = 64  # of the rows for LayerNorm
UNIT = 2.0**-24  # largest relative rounding error of float32
ADVICE = (
    "Do not train. This device computes another function than the authors' code, or in fewer bits than the configuration says. Check "
    "the versions of MindSpore and CANN and the precision mode (docs/ascend.md), and send us this page"
)


def sampled(gradients: Mapping[str, np.ndarray]) -> np.ndarray:
    """Up to SAMPLES numbers of each parameter's gradient, evenly spaced, by parameter name."""
    flat = [gradients[name].ravel() for name in sorted(gradients)]
    return np.concatenate([g[np.linspace(0, g.size - 1, min(SAMPLES, g.size)).astype(int)] for g in flat])


def errors(golden: Mapping[str, np.ndarray], logits: np.ndarray, loss: float, gradient: np.ndarray) -> np.ndarray:
    """The relative errors of logits, loss and gradient, see above."""
    return np.array([
        np.abs(logits - golden["logits"]).max() / np.abs(golden["logits"]).max(),
        abs(loss - float(golden["loss"])) / float(golden["loss"]),
        np.linalg.norm(gradient - golden["gradient"]) / np.linalg.norm(golden["gradient"]),
    ])  # fmt: skip


def golden(settings: Optimizer, ranks: Ranks, backend: Backend) -> list[Check]:
    """The golden networks in the precision of the run (optimizer section), and two layers. The worst rank counts."""
    formats, checks = "float32 O0" if settings.amp_level == "O0" else f"{settings.amp_dtype} {settings.amp_level}", []
    for name in FILES:
        with np.load(FOLDER / f"{name}.npz") as file:
            values = dict(file)
        found = errors(values, *_computed(values, settings, backend))
        names = [f"error of the {what}, {name} ({formats})" for what in ("logits", "loss", "gradient")]
        checks += _judged(ranks, names, found, values[f"bound.{formats}"])
    return checks + _layers(ranks, backend)


def _computed(values: Mapping[str, np.ndarray], settings: Optimizer, backend: Backend) -> tuple[np.ndarray, float, np.ndarray]:
    """Logits, loss and sampled gradient of a golden network by the project's predictor and training step."""
    arch = Architecture.from_dict(json.loads(str(values["config"])))
    formats = precision(settings.amp_level, settings.amp_dtype)
    weights = {key.removeprefix("weight."): value for key, value in values.items() if key.startswith("weight.")}
    predictor = Predictor(arch, len(values["x"]), formats, backend=backend)
    logits = predictor.logits(predictor.on_device(weights), values["x"])
    step = TrainStep(CSWin(arch, formats), settings, np.zeros(1, np.float32), accumulation=2, backend=backend)
    step.load(step.arrays() | weights)
    ones = np.ones((2 * sum(arch.depth), len(values["x"])), np.float32)  # no drop path
    step.accumulate(Tensor(values["x"]), Tensor(values["target"]), Tensor(ones))
    scale = float(step.loss_scale.asnumpy())
    gradients = step.layout.unpack({group: g.asnumpy() / scale for group, g in zip(GROUPS, step.sums, strict=True)})
    return logits, float(step.loss_sum.asnumpy()) / scale, sampled(gradients)


def _layers(ranks: Ranks, backend: Backend) -> list[Check]:
    """LayerNorm of rows whose variance is below its epsilon, and GELU."""
    rows = np.random.default_rng(0).normal(0, 1e-3, (64, WIDTH)).astype(np.float32)
    points = np.linspace(-6, 6, 4096, dtype=np.float32)
    layer_norm, gelu = LayerNorm(WIDTH), Gelu()

    @ms.jit(**backend.jit_options)
    def compute(x, weight, bias, y):
        return layer_norm(x, weight, bias), gelu(y)

    ones, zeros = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
    normal, activated = (t.asnumpy() for t in compute(*map(Tensor, (rows, ones, zeros, points))))
    x, y = rows.astype(np.float64), points.astype(np.float64)
    exact, faulty = ((x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + e) for e in (LAYER_NORM_EPSILON, 1e-7))
    phi, tanh = (1 + erf(y / math.sqrt(2))) / 2, (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3))) / 2
    found = np.array([np.abs(normal - exact).max(), np.abs(activated - y * phi).max()])
    rounding = UNIT * np.array([WIDTH * np.abs(exact).max(), 2 * np.abs(y).max()])
    faults = np.array([np.abs(faulty - exact).max(), np.abs(y * tanh - y * phi).max()])
    return _judged(ranks, ["error of LayerNorm (float32)", "error of GELU (float32)"], found, np.sqrt(rounding * faults))


def _judged(ranks: Ranks, names: list[str], found: np.ndarray, bounds: np.ndarray) -> list[Check]:
    worst = ranks.gather(found[None]).max(0)  # NaN is larger than any number
    return [judged("a", n, float(v), float(b), bool(v <= b), ADVICE) for n, v, b in zip(names, worst, bounds, strict=True)]
