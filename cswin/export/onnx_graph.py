"""The network as an ONNX graph, built operation by operation from the architecture.

MindSpore's own exporter cannot write the exact GELU. Here GELU(x) = x (1 + erf(x / sqrt 2)) / 2 is composed from operations that
every runtime of opset 17 has, so it is exact. The batch is a free dimension. The initialisers have the authors' parameter names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cswin.model.variants import PATCH_SIZE, Architecture

OPSET = 17  # the first opset with LayerNormalization
IR_VERSION = 8  # the IR version of opset 17, which older runtimes read
LAYER_NORM_EPSILON = 1e-5
INPUT, OUTPUT, BATCH = "images", "logits", "batch"


class _Graph:
    """Collects nodes and initialisers; each method adds one operation and returns the name of its result."""

    def __init__(self, weights: Mapping[str, np.ndarray]):
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers = {k: numpy_helper.from_array(np.ascontiguousarray(v, np.float32), k) for k, v in weights.items()}

    def add(self, operation: str, *inputs: str, outputs: int = 1, **attributes):
        """Adds a node; returns the name of its result, or the names if there are several."""
        results = [f"{operation.lower()}_{len(self.nodes)}_{i}" for i in range(outputs)]
        name = f"{operation}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, list(inputs), results, name=name, **attributes))
        return results[0] if outputs == 1 else results

    def constant(self, value, dtype=np.float32) -> str:
        """A constant; equal constants are shared."""
        array = np.asarray(value, dtype)
        name = f"constant {array.dtype} {array.tolist()}"
        self.initialisers.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def reshape(self, x: str, *shape: int) -> str:
        return self.add("Reshape", x, self.constant(shape, np.int64))

    def transpose(self, x: str, *order: int) -> str:
        return self.add("Transpose", x, perm=order)

    def layer_norm(self, x: str, name: str) -> str:
        return self.add("LayerNormalization", x, f"{name}.weight", f"{name}.bias", axis=-1, epsilon=LAYER_NORM_EPSILON)

    def linear(self, x: str, name: str) -> str:
        """(N, in) -> (N, out)."""
        return self.add("Gemm", x, f"{name}.weight", f"{name}.bias", transB=1)

    def conv(self, x: str, name: str, kernel: int, stride: int, pad: int, groups: int = 1) -> str:
        return self.add("Conv", x, f"{name}.weight", f"{name}.bias", kernel_shape=[kernel] * 2, strides=[stride] * 2,
                        pads=[pad] * 4, group=groups)  # fmt: skip

    def gelu(self, x: str) -> str:
        """Exact: x / 2 * (1 + erf(x / sqrt 2))."""
        erf = self.add("Erf", self.add("Mul", x, self.constant(math.sqrt(0.5))))
        return self.add("Mul", self.add("Mul", x, self.constant(0.5)), self.add("Add", erf, self.constant(1.0)))


def onnx_model(arch: Architecture, weights: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The network with these weights.

    Args:
        arch: the architecture.
        weights: float32 by parameter name.
        metadata: strings that are stored in the file.

    Returns:
        A checked model: `images` (batch, in_channels, image_size, image_size), float32, normalised -> `logits` (batch,
        num_classes), float32; the batch is free.
    """
    graph = _Graph(weights)
    x = _tokens(graph, graph.conv(INPUT, "stage1_conv_embed.0", 7, PATCH_SIZE, 2), arch.dims[0])
    x = graph.layer_norm(x, "stage1_conv_embed.2")
    for stage in range(4):
        if stage:
            x = _merge(graph, x, f"merge{stage}", arch.dims[stage - 1], arch.resolutions[stage - 1])
        for block in range(arch.depth[stage]):
            x = _block(graph, x, f"stage{stage + 1}.{block}", arch, stage)
    x = graph.reshape(graph.layer_norm(x, "norm"), -1, arch.resolutions[3] ** 2, arch.dims[3])
    x = graph.linear(graph.add("ReduceMean", x, axes=[1], keepdims=0), "head")
    graph.add("Identity", x)
    graph.nodes[-1].output[0] = OUTPUT
    side = arch.image_size
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "CSWin",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [BATCH, arch.in_channels, side, side])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [BATCH, arch.num_classes])],
            list(graph.initialisers.values()),
        ),
        producer_name="cswin",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    return model


def _tokens(graph: _Graph, image: str, dim: int) -> str:
    """(B, dim, H, W) -> (B H W, dim)."""
    return graph.reshape(graph.transpose(image, 0, 2, 3, 1), -1, dim)


def _merge(graph: _Graph, x: str, name: str, dim: int, side: int) -> str:
    image = graph.transpose(graph.reshape(x, -1, side, side, dim), 0, 3, 1, 2)
    return graph.layer_norm(_tokens(graph, graph.conv(image, f"{name}.conv", 3, 2, 1), 2 * dim), f"{name}.norm")


def _block(graph: _Graph, x: str, name: str, arch: Architecture, stage: int) -> str:
    """x: (B L, C) -> the same."""
    side, stripe = arch.resolutions[stage], arch.split_size[stage]
    shapes = [(side, side)] if arch.full_window(stage) else [(side, stripe), (stripe, side)]
    branches, dim = len(shapes), arch.dims[stage]
    heads, width = arch.num_heads[stage] // branches, dim // branches
    qkv = graph.linear(graph.layer_norm(x, f"{name}.norm1"), f"{name}.qkv")
    parts = graph.add("Split", qkv, outputs=3 * branches, axis=1)  # q, k, v, each one part per branch
    outputs = [
        _attention(graph, parts[i::branches], f"{name}.attns.{i}.get_v", (heads, width // heads), side, shape)
        for i, shape in enumerate(shapes)
    ]
    y = outputs[0] if branches == 1 else graph.add("Concat", *outputs, axis=1)
    x = graph.add("Add", x, graph.linear(y, f"{name}.proj"))
    y = graph.linear(graph.layer_norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
    return graph.add("Add", x, graph.linear(graph.gelu(y), f"{name}.mlp.fc2"))


def _attention(graph: _Graph, qkv: Sequence[str], lepe: str, heads: tuple[int, int], side: int, stripe: tuple[int, int]) -> str:
    """Attention with LePE inside stripes of (height, width) tokens; `heads`: their number and the channels of each, of which q, k, v
    and the result (B L, dim) consist."""
    (heads, head_dim), (height, width) = heads, stripe
    dim, tokens = heads * head_dim, height * width
    grid = (side // height, height, side // width, width)
    q, k, v = (graph.reshape(t, -1, *grid, heads, head_dim) for t in qkv)
    # Axes: batch, row of stripes, row, column of stripes, column, head, channel.
    q = graph.reshape(graph.transpose(q, 0, 1, 3, 5, 2, 4, 6), -1, heads, tokens, head_dim)
    k = graph.reshape(graph.transpose(k, 0, 1, 3, 5, 6, 2, 4), -1, heads, head_dim, tokens)
    values = graph.reshape(graph.transpose(v, 0, 1, 3, 5, 2, 4, 6), -1, heads, tokens, head_dim)
    image = graph.reshape(graph.transpose(v, 0, 1, 3, 5, 6, 2, 4), -1, dim, height, width)
    scores = graph.add("MatMul", graph.add("Mul", q, graph.constant(head_dim**-0.5)), k)
    y = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), values)
    position = graph.reshape(graph.conv(image, lepe, 3, 1, 1, groups=dim), -1, heads, head_dim, tokens)
    y = graph.add("Add", y, graph.transpose(position, 0, 1, 3, 2))
    y = graph.reshape(y, -1, grid[0], grid[2], heads, height, width, head_dim)
    return graph.reshape(graph.transpose(y, 0, 1, 4, 2, 5, 3, 6), -1, dim)
