"""Number formats of the operations."""

from __future__ import annotations

from dataclasses import dataclass

import mindspore as ms
from mindspore import ops

from cswin.errors import UserError


@dataclass(frozen=True)
class Precision:
    """Number formats of a network's operations; parameters are always float32.

    Attributes:
        product: convolutions, linear layers and both attention products (the white list).
        stream: values between them: residual sums and GELU.

    LayerNorm, softmax, the LePE sum, pooling, the head's logits and the loss are computed in float32 at every level (the
    black list): they have sums of hundreds of terms, or an exponential.
    """

    product: ms.Type
    stream: ms.Type


def precision(level: str, dtype: str = "float16") -> Precision:
    """`O0`: float32 throughout. `O1`: products in `dtype`, the rest in float32. `O2`: the stream in `dtype` as well."""
    low = {"float16": ms.float16, "bfloat16": ms.bfloat16}.get(dtype)
    if low is None:
        raise UserError(f"amp_dtype: {dtype!r} is not known; float16 or bfloat16")
    formats = {"O0": (ms.float32, ms.float32), "O1": (low, ms.float32), "O2": (low, low)}
    if level not in formats:
        raise UserError(f"amp_level: {level!r} is not known; one of O0, O1, O2 (the letter O and a digit)")
    return Precision(*formats[level])


def require_precision(formats: Precision) -> None:
    """Try the format of the products on the device.

    Raises:
        UserError: if the device has no such products (bfloat16 on CPUs and on the first Ascend 910).
    """
    if formats.product != ms.bfloat16:  # every device supports the other two
        return
    ones = ops.ones((2, 2), ms.float32).astype(formats.product)
    try:
        ops.matmul(ones, ones).astype(ms.float32).asnumpy()
    except (RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        target = ms.get_current_device().device_target
        raise UserError(
            f"optimizer.amp_dtype: 'bfloat16' is not available on this device ({target}: {reason}); use float16, or amp_level O0"
        ) from error
