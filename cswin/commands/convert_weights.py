"""Convert weights of PyTorch files (.pth, .pt, .tar), MindSpore checkpoints (.ckpt) and .safetensors to one of the last two.

The suffixes select the formats; PyTorch reads .safetensors (safetensors.torch.load_file). PyTorch is not needed, and no code in a file
is executed. Architecture and classes come from the file's record or, if it has none, from the shapes of the parameters. What the shapes
do not determine must be given as an option.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cswin.class_names import read_class_names
from cswin.convert.architecture import Choice
from cswin.convert.convert import WHICH, Options, convert_weights, described
from cswin.model.variants import VARIANTS


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--which", choices=WHICH, default="auto",
                        help="weights to convert: the moving average (ema), the trained weights (raw), or both; auto: all "
                        "weights of a checkpoint of cswin; of another file the moving average if it has one")  # fmt: skip
    arch = parser.add_argument_group("architecture", "needed if the shapes do not determine it (heads, stripes, image size)")
    arch.add_argument("--arch", metavar="NAME", help=f"one of {', '.join(VARIANTS)}")
    arch.add_argument("--image-size", type=int, metavar="PIXELS")
    arch.add_argument("--split-size", type=int, nargs=4, metavar="N", help="stripe width of each stage, in tokens")
    arch.add_argument("--num-heads", type=int, nargs=4, metavar="N", help="attention heads of each stage")
    head = parser.add_argument_group("head")
    head.add_argument("--new-head", type=int, metavar="N", help="replace the head by a fresh one of N classes")
    head.add_argument("--seed", type=int, default=0, help="of the fresh head (default: 0)")
    head.add_argument("--class-names", type=Path, metavar="FILE", help="in the order of the outputs: text with one name per "
                      "line, a table (.tsv, its first column), dataset.json (default: the file's own; of 1,000 outputs ImageNet's)")  # fmt: skip

    prep = parser.add_argument_group("preprocessing", "default: the record's; else ImageNet's, crop 0.9 (1.0 from 384 pixels)")
    prep.add_argument("--crop-ratio", type=float, metavar="RATIO")
    prep.add_argument("--mean", type=float, nargs="+", metavar="X", help="one value per channel, for pixels in [0, 1]")
    prep.add_argument("--std", type=float, nargs="+", metavar="X")
    prep.add_argument("--interpolation", choices=("bicubic", "bilinear"))


def run(args: argparse.Namespace) -> None:
    """Convert, and print what was written."""
    given = {k: getattr(args, k) for k in ("crop_ratio", "mean", "std", "interpolation")}
    split_size, num_heads = (tuple(v) if v else None for v in (args.split_size, args.num_heads))
    options = Options(
        which=args.which,
        choice=Choice(args.arch, args.image_size, split_size, num_heads),
        new_head=args.new_head,
        seed=args.seed,
        class_names=None if args.class_names is None else read_class_names(args.class_names),
        preprocessing={k: v for k, v in given.items() if v is not None},
    )
    written = convert_weights(args.input, args.output, options)
    print("\n".join(described(written, args.output)))
