"""Export the network of a checkpoint to ONNX (.onnx, any batch size) or to MindSpore's MINDIR (.mindir, a fixed batch size).

The exported file is run on random images and compared with the network; if it differs, it is not kept. A JSON file beside it
describes preprocessing, class names, input and output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cswin.distributed.backend import add_device_arguments, start_backend
from cswin.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("output", type=Path, metavar="FILE", help="NAME.onnx or NAME.mindir")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="a .ckpt or .safetensors of cswin")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images at a time in a .mindir (default: 1)")
    parser.add_argument("--which", choices=("raw", "ema"),
                        help="set of weights (default: the one by which the epoch was selected, evaluation.select_by)")  # fmt: skip
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Export, check, and print the result."""
    from cswin.checkpoint import load_checkpoint
    from cswin.export.export import export

    if args.batch < 1:
        raise UserError(f"--batch: {args.batch} must be at least 1")
    start_backend(args.device_target, args.device_id)
    written = export(load_checkpoint(args.checkpoint), args.output, args.batch, args.which)
    print(f"{written.path}: {written.which} weights; its logits differ from the network's by {written.difference:.1e} at most")
    print(f"{written.description}: preprocessing, class names, input and output")
