"""Estimate images, steps, files, memory and hours of each stage of a configuration. Run it in the folder of the workflow: it looks
for the manifest in data.directory."""

from __future__ import annotations

from pathlib import Path


def configure(parser):
    parser.add_argument(
        "config", nargs="?", type=Path, default=Path("config/config.yaml"), metavar="CONFIG", help="default: %(default)s"
    )
    parser.add_argument("--images-per-s", type=float, metavar="R", help="training images per second over all devices")


def run(args):
    from cswin.config.resolve import load_settings
    from cswin.estimate import estimate_text, positive

    rate = None if args.images_per_s is None else positive(args.images_per_s, "--images-per-s")
    print(estimate_text(load_settings(args.config), rate))
