"""Export the network of a checkpoint to ONNX (NAME.onnx, any batch size), to MindSpore's MINDIR (NAME.mindir, a fixed batch size), or
to a folder for Hugging Face's hub (hf FOLDER).

An ONNX or MINDIR file is run on random images and compared with the network; if it differs, it is not kept. A JSON file beside it
describes preprocessing, class names, input and output. The folder contains config.json as timm writes it, model.safetensors with the
authors' parameter names, and README.md, a model card made from the run card.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cswin.distributed.backend import add_device_arguments, start_backend
from cswin.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("target", nargs="+", metavar="TARGET", help="NAME.onnx, NAME.mindir, or the two words hf FOLDER")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="a .ckpt or .safetensors of cswin")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images at a time in a .mindir (default: 1)")
    parser.add_argument("--which", choices=("raw", "ema"),
                        help="set of weights (default: the one by which the epoch was selected, evaluation.select_by)")  # fmt: skip
    parser.add_argument(
        "--license", metavar="NAME", help="with hf: licence of the weights, for example apache-2.0 (default: not said)"
    )
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Export, check, and print the result."""
    if args.target[0] == "hf" and len(args.target) == 2:
        return _export_hf(args, Path(args.target[1]))
    if len(args.target) > 1 or args.target == ["hf"]:
        raise UserError(f"{' '.join(args.target)}: give one file, NAME.onnx or NAME.mindir, or the two words hf FOLDER")
    if args.license:
        raise UserError("--license: has no effect without hf; leave it out")
    return _export_file(args, Path(args.target[0]))


def _export_hf(args: argparse.Namespace, folder: Path) -> None:
    from cswin.export.hf import Source, export_hf

    source = Source.find(args.checkpoint)
    which = export_hf(source, folder, args.which, args.license)
    print(f"{folder}: {which} weights; README.md {f'from {source.card}' if source.card else 'without a run card'}, "
          f"{'with the figures of its evaluation' if source.evaluation else 'without figures'}")  # fmt: skip


def _export_file(args: argparse.Namespace, path: Path) -> None:
    from cswin.checkpoint import load_checkpoint
    from cswin.export.export import export

    if args.batch < 1:
        raise UserError(f"--batch: {args.batch} must be at least 1")
    start_backend(args.device_target, args.device_id)
    written = export(load_checkpoint(args.checkpoint), path, args.batch, args.which)
    print(f"{written.path}: {written.which} weights; its logits differ from the network's by {written.difference:.1e} at most")
    print(f"{written.description}: preprocessing, class names, input and output")
