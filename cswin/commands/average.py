"""Average checkpoints of one architecture, each with the same weight: those of several seeds, or of several epochs.

Weights are averaged with weights, moving averages with moving averages, in float64. The result's record names each file and its hash.
"""

from __future__ import annotations

from pathlib import Path


def configure(parser):
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="FILE", help="two or more .ckpt or .safetensors of cswin")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=".ckpt or .safetensors to write")


def run(args):
    from cswin.average import average_checkpoints
    from cswin.checkpoint import save_checkpoint
    from cswin.errors import UserError
    from cswin.tensor_file import known_suffix

    known_suffix(args.output)
    if any(args.output.exists() and path.exists() and args.output.samefile(path) for path in args.checkpoints):
        raise UserError(f"--output {args.output}: is one of the checkpoints; give another name")
    average = average_checkpoints(args.checkpoints)
    digest = save_checkpoint(args.output, average)
    sets = "weights" if average.ema is None else "weights and moving averages"
    print(f"{args.output}: the mean of {len(args.checkpoints)} checkpoints' {sets}, SHA-256 {digest}")
