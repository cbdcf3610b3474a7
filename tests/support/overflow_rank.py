"""Run by msrun in tests/distributed/test_distributed.py: steps in float16; the second overflows, on the last rank only.

Arguments: a folder for the figures of each rank, the device (infnan; saturation; unnoticed: it saturates and its flag is not read),
and the number of steps.
"""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore.communication import get_group_size, get_rank, init
from networks import begin
from recipes import optimizer
from saturating import Flag, SaturatingStep

from cswin.distributed.backend import BACKENDS
from cswin.model.cswin import CSWin
from cswin.model.precision import precision
from cswin.model.variants import variant
from cswin.model.weights import initial_weights
from cswin.train import step as module
from cswin.train.step import TrainStep

ms.set_device("CPU")
init()
rank, size = get_rank(), get_group_size()
arch = variant("cswin_32_1121_digits_32").replace(num_classes=4)
folder, device, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
module.OverflowFlag = Flag
backend = dataclasses.replace(BACKENDS["CPU"], overflow="saturation" if device == "saturation" else "infnan")
network, settings = CSWin(arch, precision("O1")), optimizer(loss_scale=256.0)
kind = TrainStep if device == "infnan" else SaturatingStep
step = kind(network, settings, np.full(steps, 1e-3, np.float32), devices=size, backend=backend)
begin(step, initial_weights(arch, np.random.default_rng(0)))
rng = np.random.default_rng(rank)
factors = np.ones((2 * 5, 2), np.float32)
rows = []
for number in range(steps):
    images = rng.standard_normal((2, 3, 32, 32)).astype(np.float32)
    if number == 1 and rank == size - 1:
        images[0, 0, 0, 0] = np.inf
    targets = np.eye(4, dtype=np.float32)[rng.integers(0, 4, 2)]
    values = step(ms.Tensor(images), ms.Tensor(targets), ms.Tensor(factors)).asnumpy()
    weights = hashlib.sha256(
        b"".join(parameter.asnumpy().tobytes() for parameter in step.get_parameters() if parameter.name != "noted")
    ).hexdigest()
    figures = {name: repr(float(value)) for name, value in zip(TrainStep.OUTPUTS, values, strict=True)}
    rows.append(figures | {"weights": weights, "next_scale": float(step.loss_scale.asnumpy())})
Path(folder, f"{rank}.json").write_text(json.dumps(rows))
