"""Print parameters, multiply-accumulates and memory of an architecture, in total and per stage."""

from __future__ import annotations

import argparse

from cswin.errors import UserError
from cswin.model.variants import VARIANTS, variant
from cswin.profile import LEVEL_BYTES, report


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("name", metavar="NAME", help=f"the architecture: {', '.join(VARIANTS)}")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="input size (default: the architecture's)")
    parser.add_argument("--classes", type=int, metavar="N", help="number of classes (default: the architecture's)")
    parser.add_argument("--channels", type=int, metavar="N", help="input channels (default: the architecture's)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="batch size per device (default: 1)")
    parser.add_argument("--amp-level", default="O0", choices=list(LEVEL_BYTES), help="mixed precision (default: O0, float32)")
    parser.add_argument(
        "--recompute", type=int, nargs="+", choices=range(1, 5), default=[], help="stages computed again, for memory"
    )


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    if args.batch < 1:
        raise UserError(f"--batch: {args.batch} must be positive")
    given = {"image_size": args.image_size, "num_classes": args.classes, "in_channels": args.channels}
    arch = variant(args.name).replace(**{key: value for key, value in given.items() if value is not None})
    print(report(args.name, arch, args.batch, args.amp_level, args.recompute))
