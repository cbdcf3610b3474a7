"""The network with weights, for all uses except training: validation, evaluation, prediction, and the check of an export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from cswin.checkpoint import check_parameters
from cswin.distributed.backend import BACKENDS, Backend
from cswin.distributed.graph_cache import graph_cache
from cswin.distributed.memory import require_memory
from cswin.model.cswin import CSWin
from cswin.model.precision import Precision, precision
from cswin.model.variants import Architecture
from cswin.model.weights import GROUPS


class Predictor:
    """A network compiled once for one batch size; any weights are its arguments.

    Args:
        arch, formats, formulation: as for `CSWin`.
        batch_size: of the compiled graph; smaller batches are padded.
        backend: of the device.

    Attributes:
        graph: what shapes the compiled graph, for the cache.

    Raises:
        UserError: if the batch cannot fit into the memory.
    """

    def __init__(
        self,
        arch: Architecture,
        batch_size: int,
        formats: Precision | None = None,
        formulation: str | None = None,
        backend: Backend = BACKENDS["CPU"],  # noqa: B008 (frozen)
    ):
        formats = formats or precision("O0")
        level = "O0" if formats.product == ms.float32 else "O2"
        require_memory(arch, batch_size, ms.get_current_device().device_target, level)
        network = CSWin(arch, formats, formulation)
        self.layout, self.batch_size, self.classes = network.layout, batch_size, arch.num_classes
        self.image_shape = (arch.in_channels, arch.image_size, arch.image_size)
        self.graph = [asdict(arch), batch_size, str(formats), network.form, asdict(backend)]

        @ms.jit(**backend.jit_options)
        def forward(images, matrices, vectors):
            return network.outputs(images, network.cut(matrices, vectors))

        self._forward = forward

    def on_device(self, weights: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor]:
        """Weights by parameter name in the form that `logits` needs.

        Raises:
            UserError: if names or shapes differ from those of the network.
        """
        check_parameters({name: value.shape for name, value in weights.items()}, self.layout.shapes)
        buffers = self.layout.pack(weights)
        return tuple(Tensor(buffers[group]) for group in GROUPS)

    def logits(self, weights: tuple[Tensor, Tensor], images: np.ndarray) -> np.ndarray:
        """(n, C, H, W) float32, n up to the batch size -> (n, classes) float32."""
        return self.outputs(weights, images)[1]

    def outputs(self, weights: tuple[Tensor, Tensor], images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same, but first the pooled features, which the head classifies: (n, channels of the last stage) float32."""
        n = len(images)
        if n < self.batch_size:
            images = np.concatenate([images, np.zeros((self.batch_size - n, *self.image_shape), images.dtype)])
        pooled, logits = self._forward(Tensor(images), *weights)
        return pooled.asnumpy()[:n], logits.asnumpy()[:n]

    def compile(self) -> None:
        """Compile the graph before the first call of `logits`."""
        weights = tuple(Tensor(np.zeros(self.layout.size(group), np.float32)) for group in GROUPS)
        self.logits(weights, np.zeros((self.batch_size, *self.image_shape), np.float32))

    def compile_cached(self, wanted: bool) -> None:
        """The same where no other graph is compiled in this process: it is kept for others, if that is wanted."""
        with graph_cache(self.graph, wanted) as keep:
            self.compile()
            keep()


class WeightedCSWin(nn.Cell):
    """The network with weights as its own parameters, for export: images (B, C, H, W) -> logits.

    Args:
        arch: the architecture.
        weights: float32, by parameter name.
        formulation: as for `CSWin`; by default the one with plain operations, which every runtime has.

    Raises:
        UserError: if names or shapes differ from those of the network.
    """

    def __init__(self, arch: Architecture, weights: Mapping[str, np.ndarray], formulation: str | None = "Ascend"):
        super().__init__()
        self.network = CSWin(arch, formulation=formulation)
        check_parameters({name: value.shape for name, value in weights.items()}, self.network.layout.shapes)
        buffers = self.network.layout.pack(weights)
        self.matrices, self.vectors = (Parameter(Tensor(buffers[group]), name=group) for group in GROUPS)

    def construct(self, images):
        return self.network(images, self.network.cut(self.matrices, self.vectors))


class FeatureMaps(WeightedCSWin):
    """A backbone for detection and segmentation, as timm's `features_only`: images (B, C, H, W) -> four maps, see
    `CSWin.feature_maps`. Its weights are parameters, so they can be trained further.
    """

    def construct(self, images):
        return self.network.feature_maps(images, self.network.cut(self.matrices, self.vectors))
