"""Low precision simulated on the CPU, from which the bounds of `cswin preflight` follow. It also writes the package's golden values.

All results of products and additions of biases, and their inputs, are rounded to the bits of the format, in both directions of the
differentiation; everything else is float32. Products are those of the first Ascend 910, where LePE and the head are products in
float16, too. Level O2 also rounds the stream between the blocks. The rounding grid is shifted by a random factor at each place, so
each draw has other rounding errors of the same size: a device, with its own order of sums, has again others.

    python tests/support/rounding.py DRAWS [NAME …]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from networks import cut, named_gradients

from cswin.model.cswin import CSWin
from cswin.model.layers import ConvTokens
from cswin.model.variants import Architecture
from cswin.preflight.golden import FILES, FOLDER, errors, sampled

SOURCE = Path(__file__).parents[1] / "golden"
# Bits of the mantissa, with the leading one. float32: 22 instead of 24, for functions that are right to 2 units in the last place.
BITS = {"float32": 22, "float16": 11, "bfloat16": 8}
FORMATS = ("float32 O0", "float16 O1", "float16 O2", "bfloat16 O1", "bfloat16 O2")
# Of the root mean square of the draws. The error of one number is about normal; rounding twice where the simulation rounds once
# makes it sqrt(2) times as large, so the bound is 3.5 standard deviations of a device's error.
MARGIN = 5.0


class Round(nn.Cell):
    """x and its gradient rounded to `bits` bits (Dekker's splitting), on a grid shifted by a random factor."""

    def __init__(self, bits: int, rng: np.random.Generator):
        super().__init__()
        self.factor, self.rng = float(2 ** (24 - bits) + 1), rng

    def rounded(self, x):
        shift = float(np.float32(self.rng.uniform(1, 2)))
        x = x * shift
        large = x * self.factor
        return (large - (large - x)) / shift

    def construct(self, x):
        return self.rounded(x)

    def bprop(self, x, out, dout):
        return (self.rounded(dout),)


class Rounded(nn.Cell):
    """An operation with rounded arguments and results."""

    def __init__(self, operation, rounding: Round):
        super().__init__()
        self.operation, self.rounding = operation, rounding

    def construct(self, *arguments):
        return self.rounding(self.operation(*(self.rounding(argument) for argument in arguments)))


def simulated(arch: Architecture, name: str, seed: int) -> CSWin:
    """A network that computes as in a format of FORMATS, up to the rounding errors' signs."""
    dtype, level = name.split()
    network, rounding = CSWin(arch, formulation="Ascend"), Round(BITS[dtype], np.random.default_rng(seed))
    for _, cell in list(network.cells_and_names()):
        for operation in ("matmul", "bias_add", "conv", "times", "times_transposed"):
            inner = getattr(cell, operation, None)
            if isinstance(inner, ops.Primitive):
                delattr(cell, operation)
                setattr(cell, operation, Rounded(inner, rounding))
        if level == "O2" and (hasattr(cell, "stream") or isinstance(cell, ConvTokens)):
            delattr(cell, "cast")
            cell.cast = lambda x, dtype: rounding(x)
    return network


def simulate(source, name: str, seed: int) -> np.ndarray:
    """The errors of logits, loss and gradient in one draw."""
    arch = architecture(source)
    network, weights = simulated(arch, name, seed), weights_of(source)
    target, parts = Tensor(source["target"]), 2 * len(network.layout.pieces)

    def forward(x, *pieces):
        logits = network(x, pieces)
        return (ops.logsumexp(logits, -1) - (target * logits).sum(-1)).mean(), logits

    differentiate = ms.value_and_grad(forward, tuple(range(1, 1 + parts)), None, has_aux=True)
    (loss, logits), gradients = differentiate(Tensor(source["x"]), *cut(network, weights))
    found = sampled(named_gradients(network, gradients))
    expected = {"logits": source["logits"], "loss": source["loss"], "gradient": gradient_of(source)}
    return errors(expected, logits.asnumpy(), float(loss), found)


def architecture(source) -> Architecture:
    config = json.loads(str(source["config"]))
    config["image_size"] = config.pop("img_size", None) or config["image_size"]
    return Architecture.from_dict(config)


def weights_of(source) -> dict[str, np.ndarray]:
    return {key.removeprefix("weight."): source[key] for key in source.files if key.startswith("weight.")}


def gradient_of(source) -> np.ndarray:
    return sampled({key.removeprefix("grad."): source[key] for key in source.files if key.startswith("grad.")})


def loss_error(source, logits_error: float) -> float:
    """The largest relative error of the loss if no logit is off by more than this share of the largest logit.

    To first order a change of the logits changes a sample's loss by its product with softmax - target. The loss itself is float32.
    """
    logits = source["logits"]
    powers = np.exp(logits - logits.max(1, keepdims=True))
    slopes = np.abs(powers / powers.sum(1, keepdims=True) - source["target"]).sum(1)
    return logits_error * np.abs(logits).max() * slopes.mean() / float(source["loss"]) + MARGIN * 2.0 ** -BITS["float32"]


def write(draws: int, names: tuple[str, ...]) -> None:
    """The package's golden values with their bounds, from the tests' golden values."""
    FOLDER.mkdir(exist_ok=True)
    for name in names:
        source, bounds = np.load(SOURCE / f"model_{name}.npz"), {}
        for each in FORMATS:
            found = np.stack([simulate(source, each, seed) for seed in range(draws)])
            logits, _, gradient = MARGIN * np.sqrt((found**2).mean(0))
            bounds[f"bound.{each}"] = np.array([logits, loss_error(source, logits), gradient])
            print(name, each, "draws", found.tolist(), "bounds", bounds[f"bound.{each}"], flush=True)
        weights = {f"weight.{key}": value for key, value in weights_of(source).items()}
        facts = {"config": json.dumps(architecture(source).to_dict()), "gradient": gradient_of(source)}
        facts |= {key: source[key] for key in ("x", "target", "logits", "loss")}
        np.savez_compressed(FOLDER / f"{name}.npz", **facts, **weights, **bounds)


if __name__ == "__main__":
    ms.set_device("CPU")
    ms.runtime.launch_blocking()  # otherwise threads wait in busy loops
    write(int(sys.argv[1]), tuple(sys.argv[2:]) or FILES)
