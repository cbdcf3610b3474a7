"""What a compiled graph must not contain: each check finds the kernels that break it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cswin.dry_run.kernels import Kernel

PRODUCTS = re.compile(r"(Batch)?MatMul|MatMulExt|BatchMatMulExt|Dense|(Depthwise)?Conv2D\w*|Convolution\w*|FlashAttention\w*")
# Cells whose products are float32 at every level, see cswin.model.precision: LePE and the head.
FLOAT32_CELLS = re.compile(r"/(lepe|head)-| self\.(lepe|head)( |$)")
FORMATS = {"float32": "Float32", "float16": "Float16", "bfloat16": "BFloat16"}  # MindSpore's names


@dataclass(frozen=True)
class Violation:
    """Kernels of one operator, from one line of source, that break a check."""

    check: str
    operator: str
    source: str
    count: int

    def __str__(self) -> str:
        return f"{self.check}: {self.operator} x {self.count}, {self.source}"


def on_cpu(kernel: Kernel) -> bool:
    """The device would wait for the host, and its tensors would be copied."""
    return kernel.library == "CPU"


def calls_python(kernel: Kernel) -> bool:
    """A function of Python, or an operator of our own, inside a graph."""
    return re.match(r"Py(Func|Execute|Interpret)|Custom", kernel.operator) is not None


def has_float64(kernel: Kernel) -> bool:
    """A tensor in a format that the device computes slowly or not at all. Scalars are attributes of kernels and not meant."""
    return bool({"Float64", "Complex128"} & {*kernel.inputs, *kernel.outputs})


def is_dynamic(kernel: Kernel) -> bool:
    """A shape that is not known when the graph is compiled."""
    return kernel.dynamic


def wrong_product(product: str) -> Callable[[Kernel], bool]:
    """A check that finds matrix products and convolutions in another number format than `product` (float16, …).

    LePE and the head are computed in float32 at every level of mixed precision.
    """

    def wrong(kernel: Kernel) -> bool:
        wanted = FORMATS["float32" if FLOAT32_CELLS.search(kernel.scope) else product]
        return PRODUCTS.fullmatch(kernel.operator) is not None and set(kernel.inputs) != {wanted}

    return wrong


def checks(product: str) -> dict[str, Callable[[Kernel], bool]]:
    """All checks by what they find."""
    return {
        "kernel on the CPU": on_cpu,
        "Python callback": calls_python,
        "float64 tensor": has_float64,
        "dynamic shape": is_dynamic,
        f"product that is not {product}": wrong_product(product),
    }


def violations(kernels: Iterable[Kernel], product: str) -> list[Violation]:
    """Every check on every kernel, equal ones counted together."""
    found = Counter(
        (name, kernel.operator, kernel.source)
        for kernel in kernels
        for name, breaks in checks(product).items()
        if breaks(kernel)
    )
    return [Violation(*key, count) for key, count in sorted(found.items())]
