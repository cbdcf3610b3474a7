"""Feature maps and pooled features against those of the authors' PyTorch code (float64)."""

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from cswin.inference import FeatureMaps, Predictor
from cswin.model.variants import Architecture

DATA = Path(__file__).parents[1] / "golden"


def golden(name):
    values = np.load(DATA / f"{name}.npz")
    config = json.loads(str(values["config"]))
    config["image_size"] = config.pop("img_size")
    weights = {k.removeprefix("weight."): values[k] for k in values.files if k.startswith("weight.")}
    return values, Architecture.from_dict(config), weights


@pytest.mark.parametrize("formulation", [None, "Ascend"])
@pytest.mark.parametrize("name", ["model_two_branch", "model_collapsed", "model_report_stripes"])
def test_maps_of_the_four_stages(name, formulation):
    """A token's place is its row, then its column."""
    values, arch, weights = golden(name)
    maps = FeatureMaps(arch, weights, formulation)(ms.Tensor(values["x"]))
    assert [arch.image_size // found.shape[2] for found in maps] == [4, 8, 16, 32]
    for i, found in enumerate(maps):
        b, c, h, w = found.shape
        tokens = values[f"feature.stage{i + 1}"]
        assert (c, h) == (arch.dims[i], w)
        for row in range(h):
            for column in range(w):
                error = np.abs(found.asnumpy()[:, :, row, column] - tokens[:, row * w + column]).max()
                assert error < 1e-5, (i, row, column)


def test_pooled_features_are_what_the_head_classifies():
    values, arch, weights = golden("model_two_branch")
    predictor = Predictor(arch, 4)  # of three images: the batch is padded
    pooled, logits = predictor.outputs(predictor.on_device(weights), values["x"])
    tokens = values["feature.stage4"]
    centred = tokens - tokens.mean(-1, keepdims=True)
    normalised = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weights["norm.weight"] + weights["norm.bias"]
    assert pooled.shape == (3, arch.dims[3]) and pooled.dtype == np.float32
    assert np.abs(pooled - normalised.mean(1)).max() < 1e-5
    assert np.abs(pooled @ weights["head.weight"].T + weights["head.bias"] - values["logits"]).max() < 1e-5
    assert np.abs(logits - values["logits"]).max() < 1e-5
