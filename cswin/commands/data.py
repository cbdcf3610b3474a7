"""Make, extract, convert, verify and inspect datasets."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    _configure_sources(steps)
    _configure_manifest(steps)
    _configure_convert(steps)
    _configure_checks(steps)


def _step(steps, name: str, function, summary: str) -> argparse.ArgumentParser:
    parser = steps.add_parser(name, help=summary, description=summary)
    parser.set_defaults(function=function)
    parser.add_argument("--log", type=Path, metavar="FILE", help="also write messages and progress to this file")
    return parser


def _configure_sources(steps) -> None:
    digits = _step(steps, "digits", _digits, "write the handwritten digits as a tar.gz in the layout of ImageNet")
    digits.add_argument("--output", type=Path, required=True, metavar="FILE")

    from cswin.data.sources.registry import INPUTS, SOURCES

    extract = _step(steps, "extract", _extract, "extract the images of a source to train/ and val/, one folder per class")
    extract.add_argument("--source", choices=SOURCES, default="archive", help="layout of the files (default: %(default)s)")
    for key in INPUTS:
        kinds = ", ".join(kind for kind, source in SOURCES.items() if key in source.inputs)
        extract.add_argument(f"--{key.replace('_', '-')}", type=Path, metavar="PATH", help=f"for {kinds}")
    extract.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for train/ and val/")
    extract.add_argument("--receipt", type=Path, required=True, metavar="FILE", help="JSON file, written at the end")


def _configure_manifest(steps) -> None:
    parser = _step(steps, "manifest", _manifest, "check and list every image")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder with train/ and val/ by class")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="rows of the manifest (CSV, gzip)")
    parser.add_argument("--summary", type=Path, required=True, metavar="FILE", help="summary: counts, class names, hash (JSON)")
    parser.add_argument("--expect-train", type=_count, metavar="N", help="expected number of training images")
    parser.add_argument("--expect-val", type=_count, metavar="N", help="expected number of validation images")
    parser.add_argument("--expect-classes", type=_count, metavar="N", help="expected number of classes")
    parser.add_argument("--on-bad-image", choices=("fail", "skip"), default="fail", help="default: %(default)s")
    parser.add_argument(
        "--on-duplicate", choices=("report", "fail"), default="report", help="images with equal bytes (default: %(default)s)"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="list of images that cannot be decoded, with reasons (CSV)")
    parser.add_argument(
        "--shard-mb", type=_count, default=1024, metavar="N", help="target size of a shard in MiB (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the order of the rows (default: %(default)s)")
    parser.add_argument("--workers", type=_count, metavar="N", help="threads (default: one per core)")
    parser.add_argument("--fingerprint", type=Path, metavar="FILE", help="names, sizes and dates of the files (JSON)")


def _configure_convert(steps) -> None:
    convert = _step(steps, "convert", _convert, "write one MindRecord shard and read it back")
    convert.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder with train/ and val/ by class")
    convert.add_argument("--manifest", type=Path, required=True, metavar="FILE", help="rows of the manifest")
    convert.add_argument("--summary", type=Path, required=True, metavar="FILE", help="summary of the manifest")
    convert.add_argument("--split", choices=("train", "val"), required=True)
    convert.add_argument("--shard", type=int, required=True, metavar="N", help="number of the shard, from 0")
    convert.add_argument("--output", type=Path, required=True, metavar="FILE", help="SPLIT-NNNNN.mindrecord")

    dataset = _step(steps, "dataset", _dataset, "convert the missing shards, and write dataset.json")
    dataset.add_argument("--summary", type=Path, required=True, metavar="FILE", help="summary of the manifest")
    dataset.add_argument("--shards-dir", type=Path, required=True, metavar="DIR")
    dataset.add_argument("--output", type=Path, required=True, metavar="FILE", help="dataset.json")
    dataset.add_argument("--images", type=Path, metavar="DIR", help="images to convert; without it all shards must exist")
    dataset.add_argument("--manifest", type=Path, metavar="FILE", help="rows of the manifest; needed with --images")
    dataset.add_argument(
        "--shard-mb", type=_count, default=1024, metavar="N", help="shard size in MiB, with --images (default: %(default)s)"
    )
    dataset.add_argument(
        "--workers", type=_count, default=1, metavar="N", help="shards to convert at once (default: %(default)s)"
    )
    dataset.add_argument("--receipt", type=Path, metavar="FILE", help="JSON file with the hash of the manifest, written last")
    dataset.add_argument("--remove-images", type=Path, metavar="DIR", help="folder of extracted images to remove afterwards")


def _configure_checks(steps) -> None:
    verify = _step(steps, "verify", _verify, "read a whole dataset and compare it with its manifest")
    verify.add_argument("dataset", type=Path, metavar="DATASET", help="dataset.json")

    inspect = _step(steps, "inspect", _inspect, "print counts and sizes, and draw a contact sheet of random samples")
    inspect.add_argument("dataset", type=Path, metavar="DATASET", help="dataset.json")
    inspect.add_argument("--output", type=Path, metavar="FILE", help="contact sheet (PNG)")
    inspect.add_argument("--samples", type=_count, default=64, metavar="N", help="number of images (default: %(default)s)")
    inspect.add_argument("--split", choices=("train", "val"), default="train", help="default: %(default)s")
    inspect.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the samples (default: %(default)s)")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def run(args: argparse.Namespace) -> int | None:
    from cswin.errors import UserError
    from cswin.progress import Console

    with Console(args.log) as console:
        try:
            return args.function(args, console)
        except UserError as error:
            console.record(f"cswin data {args.step}: {error}")
            raise


def _digits(args, console) -> None:
    from cswin.data.sources.digits import write_digits

    write_digits(args.output)
    console.say(f"digits: wrote {args.output}")


def _extract(args, console) -> None:
    from cswin.data.sources.extraction import extract
    from cswin.data.sources.recognise import open_source
    from cswin.data.sources.registry import SOURCES
    from cswin.errors import UserError

    keys = list(SOURCES[args.source].inputs) or ["archive"]  # the digits are packed in an archive
    if missing := [f"--{key.replace('_', '-')}" for key in keys if getattr(args, key) is None]:
        raise UserError(f"{' and '.join(missing)}: missing; source {args.source!r} needs the path")
    source = open_source(args.source, [getattr(args, key) for key in keys])
    if not source.extracts:
        raise UserError(f"{source.title}: the images are used where they are; there is nothing to extract")
    extract(source, args.output, args.receipt, console)


def _manifest(args, console) -> None:
    import warnings

    from cswin.data.sources.fingerprint import folder_fingerprint, save_fingerprint
    from cswin.data.store.scan import Expected, ManifestOptions, write_manifest
    from cswin.distributed.cores import usable_cores

    # Pillow warns about broken EXIF, which is not used here. Not with catch_warnings, because threads share the filters.
    warnings.filterwarnings("ignore", module="PIL")
    # Taken before the images are read, so the next run detects a change in the meantime.
    fingerprint = folder_fingerprint(args.images) if args.fingerprint else None
    options = ManifestOptions(
        Expected(args.expect_train, args.expect_val, args.expect_classes),
        args.on_bad_image,
        args.report,
        args.shard_mb,
        args.seed,
        args.workers or usable_cores(),
        args.on_duplicate,
    )
    summary = write_manifest(args.images, args.output, args.summary, console, options)
    if args.fingerprint:
        save_fingerprint(fingerprint, args.fingerprint)
    for name, split in summary.splits.items():
        console.say(f"manifest: {name}: {split.images:,} images, {split.bytes / 1e9:.2f} GB, {split.shards} shards")


def _convert(args, console) -> None:
    from cswin.data.store.mindrecord import convert_shard, keep_freed_memory

    keep_freed_memory()
    convert_shard(args.images, args.manifest, args.summary, (args.split, args.shard), args.output, console)


def _dataset(args, console) -> None:
    import json

    from cswin.atomic import atomic_path
    from cswin.data.store.assemble import write_dataset

    summary = args.summary
    if args.images:
        from cswin.data.store.conversion import convert_missing, plan_shards

        summary = plan_shards(args.summary, args.shard_mb, args.shards_dir)
        convert_missing(args.images, args.manifest, summary, args.workers, console)
    dataset = write_dataset(summary, args.shards_dir, args.output, args.remove_images)
    if args.receipt:
        with atomic_path(args.receipt) as temporary:
            temporary.write_text(json.dumps({"manifest_hash": dataset.manifest_hash}) + "\n", encoding="utf-8")
    console.say(f"dataset: {dataset.name}: " + ", ".join(f"{name} {dataset.images(name):,}" for name in dataset.splits))


def _verify(args, console) -> int:
    from cswin.data.store.assemble import verify_dataset

    bad = []
    for check in verify_dataset(args.dataset, console):
        console.say(f"{check.shard.name}: " + ("; ".join(check.problems) or f"{check.rows:,} rows, good"))
        bad += [str(check.shard)] if check.problems else []
    console.say(
        "verify: all shards are good" if not bad else f"verify: damaged; convert again with: snakemake -f {' '.join(bad)}"
    )
    return 1 if bad else 0


def _inspect(args, console) -> None:
    from cswin.data.store.dataset import Dataset
    from cswin.data.store.inspect import contact_sheet, describe

    dataset = Dataset.load(args.dataset)
    for line in describe(dataset):
        print(line)
    if args.output is not None:
        contact_sheet(dataset, args.split, args.samples, args.seed, args.output)
        console.say(f"inspect: wrote {args.output}")
