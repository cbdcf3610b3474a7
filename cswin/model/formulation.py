"""The choice between two equivalent formulations of the network's operations.

`Ascend`: single operations of an accelerator's library (LayerNorm, convolution, transposition), with automatic differentiation,
for any batch size. It runs on every device, and the export uses it.

`CPU`: the same functions with operations for which MindSpore has fast CPU kernels, our own compiled loops, and explicit gradients
(`cswin.model.cpu`, `cswin.model.kernels`). benchmarks/README.md has measurements.
"""

from __future__ import annotations

import mindspore as ms

from cswin.errors import UserError

LAYER_NORM_EPSILON = 1e-5
FORMULATIONS = ("CPU", "Ascend")


def choose_formulation(name: str | None) -> str:
    """The formulation of that name; None: the one for MindSpore's current device.

    Raises:
        UserError: if the name is unknown; the message lists the known ones.
    """
    if name is None:
        return "CPU" if ms.get_current_device().device_target == "CPU" else "Ascend"
    if name not in FORMULATIONS:
        raise UserError(f"formulation: {name!r} is not known; one of {', '.join(FORMULATIONS)}")
    return name
