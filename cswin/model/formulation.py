"""Which of two equal ways the network's operations are written in.

`Ascend`: the operations that an accelerator's library has in one piece (LayerNorm, convolution, transposition), with
gradients by automatic differentiation; shapes of any batch. It runs everywhere, and is what is exported.

`CPU`: the same functions from the operations that MindSpore's CPU kernels are fast at and compiled loops of our own, with
gradients written out (`cswin.model.cpu`, `cswin.model.kernels`). Measured in
benchmarks/README.md.
"""

from __future__ import annotations

import mindspore as ms

from cswin.errors import UserError

LAYER_NORM_EPSILON = 1e-5
FORMULATIONS = ("CPU", "Ascend")


def resolve(name: str | None) -> str:
    """The formulation of that name; None: the one made for the device that MindSpore is set to.

    Raises:
        UserError: naming the known ones.
    """
    if name is None:
        return "CPU" if ms.get_current_device().device_target == "CPU" else "Ascend"
    if name not in FORMULATIONS:
        raise UserError(f"formulation: {name!r} is not known; one of {', '.join(FORMULATIONS)}")
    return name
