"""The network against values of the authors' PyTorch code (float64): logits, features, every gradient."""

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops
from networks import cut, named_gradients

from cswin.model.cswin import CSWin
from cswin.model.variants import Architecture

DATA = Path(__file__).parents[1] / "golden"
STAGES = ("stem", "stage1", "stage2", "stage3", "stage4")
# Compiling takes most of the time: in graph mode each file once, and one of them in the other formulation.
CASES = [
    ("model_two_branch", "graph", "CPU", "training"),
    ("model_collapsed", "graph", "CPU", "evaluation"),
    ("model_report_stripes", "graph", "CPU", "evaluation"),
    ("model_two_branch", "graph", "Ascend", "evaluation"),
    ("model_two_branch", "pynative", "CPU", "evaluation"),
    ("model_two_branch", "pynative", "Ascend", "training"),
    ("model_collapsed", "pynative", "CPU", "training"),
    ("model_collapsed", "pynative", "Ascend", "evaluation"),
    ("model_report_stripes", "pynative", "CPU", "training"),
    ("model_report_stripes", "pynative", "Ascend", "evaluation"),
]


def load(name, formulation):
    golden = np.load(DATA / f"{name}.npz")
    config = json.loads(str(golden["config"]))
    config["image_size"] = config.pop("img_size")
    network = CSWin(Architecture.from_dict(config), formulation=formulation)
    weights = {k.removeprefix("weight."): golden[k] for k in golden.files if k.startswith("weight.")}
    assert network.layout.shapes == {name: value.shape for name, value in weights.items()}
    return golden, network, cut(network, weights)


def loss_of(logits, target):
    return (ops.logsumexp(logits, -1) - (target * logits).sum(-1)).mean()


def differentiated(network, factors):
    """(x, target, *weights) -> (loss, logits, features), (gradient of x, gradients of the weights)."""

    def forward(x, target, *weights):
        logits = network(x, weights, factors)
        return loss_of(logits, target), logits, network.features(x, weights, factors)

    parts = 2 * len(network.layout.pieces)
    return ms.value_and_grad(forward, (0, *range(2, 2 + parts)), None, has_aux=True)


def ones(network, samples):
    return ms.Tensor(np.ones((2 * sum(network.arch.depth), samples), np.float32))


def check_gradients(golden, grad_x, named):
    compared = {"grad_x": grad_x} | {f"grad.{name}": gradient for name, gradient in named.items()}
    assert set(compared) == {key for key in golden.files if key.startswith("grad")}
    for key, value in compared.items():
        error = np.linalg.norm(value - golden[key]) / max(np.linalg.norm(golden[key]), 1e-6)
        assert error < 1e-4, (key, error)


@pytest.mark.parametrize("name, mode, formulation, phase", CASES)
def test_logits_features_and_gradients(name, mode, formulation, phase):
    """In training with drop path factors of 1, which must change nothing."""
    golden, network, weights = load(name, formulation)
    x, target = ms.Tensor(golden["x"]), ms.Tensor(golden["target"])
    run = differentiated(network, ones(network, len(x)) if phase == "training" else None)
    (loss, logits, features), (grad_x, *grads) = (ms.jit(run) if mode == "graph" else run)(x, target, *weights)
    assert np.abs(logits.asnumpy() - golden["logits"]).max() < 1e-5
    assert abs(float(loss) - float(golden["loss"])) < 1e-6
    for key, value in zip(STAGES, features, strict=True):
        assert np.abs(value.asnumpy() - golden[f"feature.{key}"]).max() < 1e-5, key
    check_gradients(golden, grad_x.asnumpy(), named_gradients(network, tuple(grads)))


@pytest.mark.parametrize("formulation", ["CPU", "Ascend"])
@pytest.mark.parametrize("name", ["model_two_branch", "model_collapsed"])
def test_any_batch_size_gives_each_sample_its_own_result(name, formulation):
    """Three samples as a batch of one and a batch of two: the same logits, and gradients that add up to the same."""
    golden, network, weights = load(name, formulation)
    run = differentiated(network, None)
    parts = []
    for samples in (slice(0, 1), slice(1, 3)):
        x, target = golden["x"][samples], golden["target"][samples]
        (_, logits, _), (grad_x, *grads) = run(ms.Tensor(x), ms.Tensor(target), *weights)
        assert np.abs(logits.asnumpy() - golden["logits"][samples]).max() < 1e-5
        named = {"grad_x": grad_x.asnumpy()} | named_gradients(network, tuple(grads))
        parts.append({name: value * len(x) / 3 for name, value in named.items()})
    first, second = parts
    grad_x = np.concatenate([first.pop("grad_x"), second.pop("grad_x")])
    check_gradients(golden, grad_x, {name: first[name] + second[name] for name in first})


def test_odd_batches_in_graph_mode():
    golden, network, weights = load("model_two_branch", "CPU")

    @ms.jit
    def run(images):
        return network(images, weights)

    for samples in ([0], [2, 0, 1, 1, 2]):
        logits = run(ms.Tensor(golden["x"][samples])).asnumpy()
        assert np.abs(logits - golden["logits"][samples]).max() < 1e-5
