"""Run as the child process of a dry run: it compiles a tiny network with faults in it. Arguments: the faults, --, the child's own."""

import sys
from pathlib import Path

import mindspore as ms
from mindspore import Tensor, nn, ops
from networks import TwoLayers

from cswin.dry_run import child
from cswin.model.cpu import compiled_operation
from cswin.train import trainer


class Planted(nn.Cell):
    """`TwoLayers` in the formulation for Ascend, and after it what an Ascend graph must not have."""

    def __init__(self, arch, formats, recompute):
        super().__init__()
        self.inner, self.form, self.faults = TwoLayers(formats.product), "Ascend", faults
        self.layout, self.cut = self.inner.layout, self.inner.cut
        self.on_cpu = ops.Erf().set_device("CPU")
        self.python = compiled_operation(lambda x: x, "planted", lambda x: x)
        self.product, self.ones = ops.MatMul(), Tensor([[1.0] * 5] * 5, ms.float32)

    def construct(self, images, weights, factors):
        logits = self.inner(images, weights, factors).astype(ms.float32)
        if "cpu" in self.faults:
            logits = self.on_cpu(logits)
        if "python" in self.faults:
            logits = logits + ops.stop_gradient(self.python(logits))
        if "float64" in self.faults:
            logits = (logits.astype(ms.float64) * 1.5).astype(ms.float32)
        if "dynamic" in self.faults:
            logits = logits + ops.nonzero(images).astype(ms.float32).sum()
        if "product" in self.faults:
            logits = self.product(logits, self.ones)
        return logits


split = sys.argv.index("--")
faults, arguments = tuple(sys.argv[1:split]), sys.argv[split + 1 :]
trainer.CSWin = Planted
child.main(Path(arguments[0]), *arguments[1:])
