"""Classify image files. Prints the most probable classes of each file, or writes them as CSV or JSON lines.

A file that cannot be read is reported and does not stop the others; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from cswin.distributed.backend import add_device_arguments, start_backend
from cswin.errors import UserError

SUFFIX_FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl"}
MOST_WORKERS = 16


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("paths", type=Path, nargs="+", metavar="IMAGE|FOLDER", help="folders are searched recursively")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="a checkpoint (.ckpt or .safetensors)")
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="classes per image (default: 5)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write (default: the screen)")
    parser.add_argument("--format", choices=("screen", "csv", "jsonl"),
                        help="default: by the suffix of --output (.csv or .jsonl), otherwise screen")  # fmt: skip
    parser.add_argument("--features", type=Path, metavar="FILE.npz",
                        help="write the pooled features of each image, which the head classifies, as NPZ")  # fmt: skip
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="images per forward pass (default: 32)")
    parser.add_argument("--workers", type=int, metavar="N", help="decoding threads (default: one per core, at most 16)")
    parser.add_argument("--crop-ratio", type=float, metavar="RATIO", help="crop ratio (default: that of the checkpoint)")
    parser.add_argument("--ignore-exif", action="store_true",
                        help="do not turn images upright by their EXIF orientation (as in training and evaluation)")  # fmt: skip
    parser.add_argument("--which", choices=("raw", "ema"),
                        help="set of weights (default: the one by which the epoch was selected, evaluation.select_by)")  # fmt: skip
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Classify the files. Returns 0, or 1 if a file could not be read."""
    import dataclasses

    from cswin.atomic import atomic_path
    from cswin.checkpoint import load_checkpoint
    from cswin.data.sources.source import listed
    from cswin.predict import Classifier, ImageReader, find_images, predict, save_features
    from cswin.progress import Console

    _check(args)
    paths, passed_over = find_images(args.paths)
    backend = start_backend(args.device_target, args.device_id)
    checkpoint = load_checkpoint(args.checkpoint)
    preprocessing = checkpoint.record.preprocessing
    if args.crop_ratio is not None:
        preprocessing = dataclasses.replace(preprocessing, crop_ratio=args.crop_ratio)
    reader = ImageReader(preprocessing, upright=not args.ignore_exif)
    classifier = Classifier(checkpoint, min(args.batch, len(paths)), backend, args.which)
    workers = args.workers or min(os.cpu_count() or 1, MOST_WORKERS)
    kind = args.format or SUFFIX_FORMATS.get(args.output.suffix.lower() if args.output else "", "screen")
    failed, features = 0, {}
    with ExitStack() as stack:
        console = stack.enter_context(Console())
        console.say(f"{args.checkpoint}: {classifier.which} weights")
        if passed_over:
            names = listed([shown(path) for path in passed_over])
            console.say(f"{len(passed_over)} files are not images, judging by suffix and content, and were ignored: {names}")
        out = sys.stdout
        if args.features:  # opened before the work, to notice a wrong path
            features_file = stack.enter_context(atomic_path(args.features))
        if args.output:
            temporary = stack.enter_context(atomic_path(args.output))
            out = stack.enter_context(temporary.open("w", encoding="utf-8", newline=""))
        write = WRITERS[kind](out)
        # On a terminal the results themselves show the progress; they would break up a progress bar.
        progress = None
        if args.output or not sys.stdout.isatty():
            progress = stack.enter_context(console.progress("predict", len(paths), "images"))
        for prediction in predict(paths, classifier, reader, args.top_k, workers):
            if prediction.error:
                failed += 1
                console.say(f"{shown(prediction.path)}: {prediction.error}")
            elif args.features:
                features[shown(prediction.path)] = prediction.features
            write(prediction)
            if progress:
                progress.update(1)
        if args.features:
            save_features(features_file, features)
    if failed:
        print(f"{failed} of {len(paths)} files could not be read", file=sys.stderr)
    return 1 if failed else 0


def _check(args: argparse.Namespace) -> None:
    for name, value in (("--top-k", args.top_k), ("--batch", args.batch), ("--workers", args.workers)):
        if value is not None and value < 1:
            raise UserError(f"{name}: {value} must be at least 1")
    if args.features and args.features.suffix != ".npz":
        raise UserError(f"--features {args.features}: is written as NPZ; give it the suffix .npz")
    if args.features and args.output and args.features.absolute() == args.output.absolute():
        raise UserError(f"--features {args.features}: is also --output; give two names")


def shown(path: Path) -> str:
    """A path as printable text; bytes that are not UTF-8 appear as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def screen_writer(out: IO[str]) -> Callable:
    """Writes each prediction as a small table. Errors are not written here; they are on stderr."""

    def write(prediction) -> None:
        if prediction.error is None:
            print(shown(prediction.path), file=out)
            for guess in prediction.guesses:
                print(f"  {100 * guess.probability:6.2f} %  {guess.words}", file=out)

    return write


def csv_writer(out: IO[str]) -> Callable:
    """Writes one row per class, and for a file that failed one row with the error."""
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["file", "rank", "class", "name", "words", "probability", "error"])

    def write(prediction) -> None:
        if prediction.error is not None:
            rows.writerow([shown(prediction.path), "", "", "", "", "", prediction.error])
        for rank, guess in enumerate(prediction.guesses, 1):
            rows.writerow([shown(prediction.path), rank, guess.label, guess.name, guess.words, f"{guess.probability:.6g}", ""])

    return write


def jsonl_writer(out: IO[str]) -> Callable:
    """Writes one object per file: `file`, and `top` (a list of `class`, `name`, `words`, `probability`) or `error`."""

    def write(prediction) -> None:
        entry: dict = {"file": shown(prediction.path)}
        if prediction.error is not None:
            entry["error"] = prediction.error
        else:
            entry["top"] = [
                {"class": g.label, "name": g.name, "words": g.words, "probability": g.probability} for g in prediction.guesses
            ]
        print(json.dumps(entry, ensure_ascii=False), file=out)

    return write


WRITERS = {"screen": screen_writer, "csv": csv_writer, "jsonl": jsonl_writer}
