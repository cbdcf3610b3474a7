"""List the weights that the authors have published, or get them: fetch a file, check it, convert it.

They lie in `weights/`, or where --folder or the environment variable CSWIN_WEIGHTS says, once for all runs. `pretrained: weights:NAME`
in a configuration gets them in the same way.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from cswin.convert.published import MIRROR_VARIABLE, PREFIX, PUBLISHED, find_published, weights_layout


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    where = "where published weights lie (default: CSWIN_WEIGHTS, else weights/)"
    parser.add_argument("--folder", type=Path, help=where)
    commands = parser.add_subparsers(dest="get", metavar="get")
    get = commands.add_parser("get", help="fetch, check and convert weights", description=__doc__)
    get.add_argument("name", metavar="NAME", help=f"one of {', '.join(PUBLISHED)}")
    get.add_argument("--folder", type=Path, default=argparse.SUPPRESS, help=where)
    get.add_argument(
        "--from", type=Path, dest="given", metavar="FILE", help="a copy of the published file, instead of fetching it"
    )
    get.add_argument("--mirror", metavar="URL", default=os.environ.get(MIRROR_VARIABLE),
                     help=f"address of a folder with the files, instead of the authors' (default: {MIRROR_VARIABLE})")  # fmt: skip
    get.add_argument("--receipt", type=Path, metavar="FILE", help="write which weights are there")
    get.add_argument("--log", type=Path, metavar="FILE", help="log file; progress bars are shown on the terminal only")


def run(args: argparse.Namespace) -> None:
    """List, or get."""
    if args.get is None:
        _list(args)
    else:
        _get(args)


def _list(args: argparse.Namespace) -> None:
    from cswin.model.weights import GROUPS, Layout
    from cswin.progress import size_text
    from cswin.report.tables import text_table

    layout, rows = weights_layout(args.folder), []
    for name, published in PUBLISHED.items():
        path, arch = layout.checkpoint(name), published.architecture(1000)
        size = size_text(path.stat().st_size if path.exists() else 4 * sum(map(Layout.of(arch).size, GROUPS)))
        size = size if path.exists() or published.classes else f"over {size}"  # its head is not documented
        measured = [f"{value:.2f}" for value in published.measured or ()] or ["-", "-"]
        here = "yes" if path.exists() else "no"
        rows.append([name, published.trained_on, arch.image_size, size, published.top1 or "-", *measured, here])
    head = ("weights", "ImageNet", "pixels", "size", "top-1", "top-1 *", "top-5 *", "here")
    print(text_table(head, rows, "simple", "right"))
    print(
        "size: of the converted file. top-1: the authors' README, %. *: the converted weights, as PaddleClas evaluated them, %\n"
        f"here: in {layout.folder}. Get them: cswin weights get NAME"
    )


def _get(args: argparse.Namespace) -> None:
    import json

    from cswin.atomic import atomic_path
    from cswin.convert.convert import described
    from cswin.convert.download import get_weights
    from cswin.progress import Console

    published = find_published(args.name)
    with Console(args.log) as console:
        got = get_weights(published, weights_layout(args.folder), console, args.given, args.mirror or None)
        console.say(got.news or f"{got.path} is here already")
    if args.receipt:
        with atomic_path(args.receipt) as temporary:
            temporary.write_text(json.dumps({"weights": published.name, "sha256": got.sha256}) + "\n", encoding="utf-8")
    print("\n".join(described(got.checkpoint, got.path)))
    if published.measured:
        top1, top5 = published.measured
        print(f"  expected on ImageNet's validation set: top-1 {top1:.2f} %, top-5 {top5:.2f} % (PaddleClas)")
    print(f"  in a configuration: pretrained: {PREFIX}{published.name}")
