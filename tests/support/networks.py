"""Networks with weights for tests, and a network that compiles in a second."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from cswin.checkpoint import Checkpoint, CheckpointRecord, save_checkpoint
from cswin.class_names import imagenet_words
from cswin.data.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from cswin.model.cswin import CSWin
from cswin.model.layers import Cut, Linear, Take
from cswin.model.variants import Architecture, variant
from cswin.model.weights import GROUPS, Layout, Piece, initial_weights
from cswin.train.step import TrainStep


def cut(network, weights: dict[str, np.ndarray]) -> tuple[Tensor, ...]:
    """Weights by parameter name as a network's second argument."""
    buffers = network.layout.pack(weights)
    return network.cut(*(Tensor(buffers[group]) for group in GROUPS))


def initialised(arch: Architecture, seed: int, *formats) -> tuple[CSWin, tuple[Tensor, ...]]:
    """A network and start values as its second argument."""
    network = CSWin(arch, *formats)
    return network, cut(network, initial_weights(arch, np.random.default_rng(seed)))


def named_gradients(network, gradients) -> dict[str, np.ndarray]:
    """Gradients for a network's second argument by parameter name."""
    joined = network.cut.join(gradients)
    return network.layout.unpack({group: g.asnumpy() for group, g in zip(GROUPS, joined, strict=True)})


def begin(step: TrainStep, weights: dict[str, np.ndarray]) -> TrainStep:
    """Load the weights into the training step; its moving average starts at them."""
    step.load(step.arrays() | weights | {f"ema.{name}": value for name, value in weights.items()})
    return step


class TwoLayers(nn.Cell):
    """A network that compiles in a second; drop path factors scale its hidden values per sample."""

    def __init__(self, product: ms.Type):
        super().__init__()
        shapes = {"first.weight": (6, 3072), "first.bias": (6,), "last.weight": (5, 6), "last.bias": (5,)}
        self.layout, self.form = Layout([Piece(shapes)]), "CPU"
        self.cut, self.take = Cut(self.layout), Take(self.layout.pieces[0])
        self.first, self.last = Linear(3072, 6, product), Linear(6, 5, product)

    def construct(self, images, weights, factors):
        (first, last), (first_bias, last_bias) = self.take(weights[0], weights[1])
        hidden = ops.tanh(self.first(images.reshape(-1, 3072), first, first_bias))
        return self.last(hidden * factors[0].reshape(-1, 1), last, last_bias)

    @property
    def start(self) -> dict[str, np.ndarray]:
        """Start values."""
        rng = np.random.default_rng(3)
        weights = {name: np.zeros(shape, np.float32) for name, shape in self.layout.shapes.items()}
        for name, scale in (("first.weight", 0.02), ("last.weight", 0.3)):
            weights[name] = rng.normal(0, scale, weights[name].shape).astype(np.float32)
        return weights


def initialised_checkpoint(arch: str, path) -> None:
    """Write a checkpoint of initial values, as a substitute for published weights."""
    architecture = variant(arch)
    names = tuple(f"class{i}" for i in range(architecture.num_classes))
    preprocessing = Preprocessing(architecture.image_size, 0.9, IMAGENET_MEAN, IMAGENET_STD)
    weights = initial_weights(architecture, np.random.default_rng(0))
    save_checkpoint(path, Checkpoint(CheckpointRecord(architecture, names, preprocessing), weights))


def unvarying_checkpoint(path, best: tuple[int, ...], ema: bool = False):
    """A checkpoint with ImageNet's classes that says the same of every image: its five best classes are `best`, most probable first.

    With `ema` its moving average is the negative of its weights. Returns the path.
    """
    arch = Architecture(8, (1, 1, 1, 1), (1, 1, 1, 1), (2, 2, 2, 2), image_size=32, num_classes=1000)
    weights = initial_weights(arch, np.random.default_rng(0))
    weights["head.weight"] = np.zeros_like(weights["head.weight"])
    weights["head.bias"] = np.zeros(1000, np.float32)
    weights["head.bias"][list(best)] = (9, 8, 7, 6, 5)
    record = CheckpointRecord(arch, tuple(imagenet_words()), Preprocessing(32, 0.9, IMAGENET_MEAN, IMAGENET_STD))
    average = {name: -value for name, value in weights.items()} if ema else None
    save_checkpoint(path, Checkpoint(record, weights, average))
    return path
