"""The architecture of a set of parameters: what their shapes determine, and what the user must give.

Shapes determine width, depth, MLP ratio, channels, classes, and whether a stage has one branch or two. They do not determine
heads, stripes and image size: for a known width and depth these come from the named variants, if only one fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cswin.errors import UserError
from cswin.model.variants import VARIANTS, Architecture, variant
from cswin.model.weights import Layout

Shapes = Mapping[str, tuple[int, ...]]
STEM = "stage1_conv_embed.0.weight"
REMEDY = "give --arch NAME, or --image-size, --split-size and --num-heads"


@dataclass(frozen=True)
class Choice:
    """The user's options about an architecture; None: not given."""

    arch: str | None = None
    image_size: int | None = None
    split_size: tuple[int, ...] | None = None
    num_heads: tuple[int, ...] | None = None

    def changes(self) -> dict:
        """The given values, by the architecture's field names."""
        values = {"image_size": self.image_size, "split_size": self.split_size, "num_heads": self.num_heads}
        return {key: value for key, value in values.items() if value is not None}


def infer_architecture(shapes: Shapes, choice: Choice, file: str) -> Architecture:
    """The architecture of parameters with these shapes; classes and channels come from the file.

    Args:
        shapes: by parameter name; a missing head means the variant's number of classes.
        choice: the user's options.
        file: its name, for error messages.

    Raises:
        UserError: if this is no CSWin, or if a required option is missing or contradicts the shapes.
    """
    seen = _decided(shapes, file)
    if choice.arch is not None:
        known = variant(choice.arch)
        different = [f"{k}: {v}, not {getattr(known, k)}" for k, v in seen.items()
                     if k in ("embed_dim", "depth", "mlp_ratio") and v != getattr(known, k)]  # fmt: skip
        if different:
            raise UserError(f"{file}: is not a {choice.arch}: " + "; ".join(different))
        return known.replace(**seen, **choice.changes())
    if len(choice.changes()) == 3:
        return Architecture(**seen, **choice.changes())
    candidates = _candidates(shapes, seen, choice)
    if len(candidates) == 1:
        return candidates.popitem()[0]
    decided = ", ".join(f"{k} {v}" for k, v in seen.items())
    if not candidates:
        raise UserError(f"{file}: no known architecture fits its shapes ({decided}); {REMEDY}")
    options = "".join(f"\n  {name}: image_size {a.image_size}, split_size {list(a.split_size)}, num_heads {list(a.num_heads)}"
                      for a, name in candidates.items())  # fmt: skip
    raise UserError(f"{file}: its shapes ({decided}) do not decide between{options}\n{REMEDY}")


def _decided(shapes: Shapes, file: str) -> dict:
    """The values that the shapes determine, by the architecture's field names."""
    width, fc1, head = (shapes.get(n, ()) for n in (STEM, "stage1.0.mlp.fc1.weight", "head.weight"))
    depth = tuple(_count(shapes, f"stage{stage}.") for stage in range(1, 5))
    if len(width) != 4 or len(fc1) != 2 or min(depth) == 0:
        some = ", ".join(list(shapes)[:5]) or "none"
        raise UserError(f"{file}: is not a CSWin Transformer: its parameters begin with {some}; "
                        f"{STEM} and blocks stage1.0 to stage4.0 are expected")  # fmt: skip
    seen = {"embed_dim": width[0], "in_channels": width[1], "depth": depth, "mlp_ratio": fc1[0] / fc1[1]}
    return seen | ({"num_classes": head[0]} if len(head) == 2 else {})


def _count(shapes: Iterable[str], prefix: str) -> int:
    """Blocks of a stage: one more than the highest number."""
    numbers = [name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)]
    return max((int(n) + 1 for n in numbers if n.isdecimal() and len(n) <= 3), default=0)


def _candidates(shapes: Shapes, seen: dict, choice: Choice) -> dict[Architecture, str]:
    """Named variants with the user's changes that have these shapes, apart from the head."""
    found = {}
    for name, known in VARIANTS.items():
        if (known.embed_dim, known.depth) != (seen["embed_dim"], seen["depth"]):
            continue
        try:
            arch = known.replace(**seen, **choice.changes())
        except UserError:
            continue
        branches = [n for n in Layout.of(arch).shapes if ".attns." in n]
        if all(n in shapes for n in branches) and len(branches) == sum(".attns." in n for n in shapes):
            found.setdefault(arch, name)
    return found
