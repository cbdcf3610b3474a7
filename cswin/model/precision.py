"""Number formats of the operations."""

from __future__ import annotations

from dataclasses import dataclass

import mindspore as ms

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
