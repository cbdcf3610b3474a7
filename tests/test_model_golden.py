"""The network against values of the authors' PyTorch code (float64): logits, features, every gradient."""

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops

from cswin.model.cswin import CSWin
from cswin.model.variants import Architecture

DATA = Path(__file__).parent / "data"
GOLDEN = ("model_two_branch", "model_collapsed", "model_report_stripes")


def load(name, lepe):
    golden = np.load(DATA / f"{name}.npz")
    config = json.loads(str(golden["config"]))
    config["image_size"] = config.pop("img_size")
    network = CSWin(Architecture.from_dict(config), lepe=lepe)
    weights = {k.removeprefix("weight."): golden[k] for k in golden.files if k.startswith("weight.")}
    parameters = {p.name: p for p in network.get_parameters()}
    assert set(parameters) == set(weights)
    for key, parameter in parameters.items():
        assert parameter.shape == weights[key].shape
        parameter.set_data(ms.Tensor(weights[key]))
    return golden, network


def loss_of(logits, target):
    return (ops.logsumexp(logits, -1) - (target * logits).sum(-1)).mean()


@pytest.mark.parametrize("lepe", ["matrix", "conv"])
@pytest.mark.parametrize("mode", ["graph", "pynative"])
@pytest.mark.parametrize("name", GOLDEN)
def test_logits_features_and_gradients(name, mode, lepe):
    golden, network = load(name, lepe)
    x, target = ms.Tensor(golden["x"]), ms.Tensor(golden["target"])

    def forward(x):
        features = network.features(x)
        logits = network.classify(features[4])
        return loss_of(logits, target), logits, features

    differentiate = ms.value_and_grad(forward, 0, network.trainable_params(), has_aux=True)
    run = ms.jit(differentiate) if mode == "graph" else differentiate
    (loss, logits, features), (grad_x, grads) = run(x)
    assert np.abs(logits.asnumpy() - golden["logits"]).max() < 1e-5
    assert abs(float(loss) - float(golden["loss"])) < 1e-6
    for key, value in zip(("stem", "stage1", "stage2", "stage3", "stage4"), features, strict=True):
        assert np.abs(value.asnumpy() - golden[f"feature.{key}"]).max() < 1e-5, key
    compared = {"grad_x": grad_x} | {
        f"grad.{p.name}": g for p, g in zip(network.trainable_params(), grads, strict=True)
    }
    for key, value in compared.items():
        reference = golden[key]
        error = np.linalg.norm(value.asnumpy() - reference) / max(np.linalg.norm(reference), 1e-6)
        assert error < 1e-4, (key, error)
