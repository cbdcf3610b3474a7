"""Evaluate the raw and EMA weights of a checkpoint; every image is counted exactly once.

With --suite: one set of its weights on several datasets, by timm's definitions (docs/suite.md).
"""

from __future__ import annotations

from pathlib import Path


def configure(parser):
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="a checkpoint (.ckpt or .safetensors)")
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--data", type=Path,
                        help="dataset.json, a .mindrecord file, a folder with one folder per class, or an archive")  # fmt: skip
    images.add_argument("--suite", type=Path, metavar="FILE", help="YAML that names the datasets of a suite (docs/suite.yaml)")
    parser.add_argument("--split", choices=("val", "train"), default="val", help="part of the data (default: val)")
    parser.add_argument("--classes-from", type=Path, metavar="FILE", help="names of a .mindrecord's classes: a dataset.json, "
                        "manifest.json, checkpoint, or text with one name per line")  # fmt: skip
    parser.add_argument("--runtime", type=Path, metavar="FILE", help="a resolved runtime section instead of the next four")
    parser.add_argument("--device-target", choices=("CPU", "Ascend"), default="CPU", help="what computes (default: CPU)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images at a time (default: 64)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="decoding workers (default: 2)")
    parser.add_argument("--device-id", type=int, default=0, metavar="N", help="number of the NPU (default: 0)")
    parser.add_argument("--crop-ratio", type=float, metavar="RATIO", help="crop ratio (default: that of the checkpoint)")
    parser.add_argument("--which", choices=("raw", "ema"), help="with --suite: set of weights (default: the one by which the epoch "
                        "was selected, evaluation.select_by)")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON; of a suite as CSV")
    parser.add_argument("--predictions", type=Path, metavar="FILE", help="write the predictions for each image as NPZ")
    parser.add_argument("--per-class", type=Path, metavar="FILE", help="write the accuracy of each class as CSV")
    parser.add_argument("--confusions", type=Path, metavar="FILE", help="write the mistakes in the worst classes as CSV")


def run(args):
    import signal
    import tempfile

    from cswin.distributed.launcher import on_one_node, run_on_devices
    from cswin.distributed.stopping import STOP_SIGNALS

    _check(args)
    runtime = on_one_node(_runtime(args))
    folder = args.output.with_suffix(".ranks") if args.output else Path(tempfile.gettempdir(), "cswin-evaluate.ranks")

    def evaluate(ranks, started):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # they end the process: there is nothing to save
        return (_evaluate_suite if args.suite else _evaluate)(args, runtime, ranks)

    return run_on_devices(runtime, folder, evaluate, lambda: _inputs(args))


def _check(args) -> None:
    """No option is passed over in silence, and no result is lost for want of a place."""
    from cswin.atomic import require_writable
    from cswin.errors import UserError

    of_data = ("predictions", "per_class", "confusions", "classes_from") if args.suite else ("which",)
    for name in of_data:
        if getattr(args, name):
            raise UserError(
                f"--{name.replace('_', '-')}: has no effect with --{'suite' if args.suite else 'data'}; leave it out"
            )
    require_writable(args.output, args.predictions, args.per_class, args.confusions)


def _inputs(args):
    """The checkpoint and the images: of a suite, those of each dataset."""
    from cswin.checkpoint import load_checkpoint
    from cswin.data.loader.labelled import open_labelled

    checkpoint = load_checkpoint(args.checkpoint)
    if args.suite:
        from cswin.suite.suite import open_suite

        return checkpoint, open_suite(args.suite, checkpoint.record.class_names)
    return checkpoint, open_labelled(args.data, args.split, checkpoint.record.class_names, args.classes_from)


def _evaluator(args, runtime, ranks, checkpoint):
    import dataclasses

    from cswin.distributed.backend import backend_of
    from cswin.evaluate import Evaluator

    preprocessing = checkpoint.record.preprocessing
    if args.crop_ratio is not None:
        preprocessing = dataclasses.replace(preprocessing, crop_ratio=args.crop_ratio)
    backend = backend_of(runtime, ranks.device if ranks.size > 1 else args.device_id)
    return Evaluator(checkpoint, preprocessing, runtime, ranks, backend)


def _evaluate_suite(args, runtime, ranks) -> int:
    from cswin.atomic import atomic_path
    from cswin.suite.suite import judge_suite
    from cswin.suite.table import csv_text, shown_text, suite_table

    checkpoint, sources = _inputs(args)
    which, _ = checkpoint.select(args.which)
    evaluator = _evaluator(args, runtime, ranks, checkpoint)
    scores = judge_suite(sources, evaluator, which)
    if not ranks.first:
        return 0
    table = suite_table(scores, checkpoint.record.architecture, evaluator.preprocessing, args.checkpoint.stem, which)
    if args.output:
        with atomic_path(args.output) as temporary:
            temporary.write_text(csv_text(table), encoding="utf-8")
    print(f"{args.checkpoint}: {which} weights\n{shown_text(table)}")
    return 0


def _evaluate(args, runtime, ranks) -> int:
    import json
    import sys

    from cswin.atomic import atomic_path
    from cswin.checkpoint import file_sha256
    from cswin.predictions import save_predictions
    from cswin.report.classes import confusions, per_class

    checkpoint, labelled = _inputs(args)
    if labelled.note and ranks.first:
        print(labelled.note, file=sys.stderr)
    evaluator = _evaluator(args, runtime, ranks, checkpoint)
    results = evaluator(labelled)
    if not ranks.first:
        return 0
    class_names = checkpoint.record.class_names
    if args.predictions:
        save_predictions(args.predictions, results, class_names)
    for path, make in ((args.per_class, per_class), (args.confusions, confusions)):
        if path:
            with atomic_path(path) as temporary:
                make(results, class_names).to_csv(temporary, index=False)
    figures = {"checkpoint": file_sha256(args.checkpoint), "manifest": labelled.manifest, "split": args.split}
    figures |= {"classes": labelled.note} if labelled.note else {}
    figures |= {"crop_ratio": evaluator.preprocessing.crop_ratio, "backend": evaluator.backend.record()}
    figures |= {which: predictions.figures() for which, predictions in results.items()}
    if args.output:
        with atomic_path(args.output) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for which in results:
        print(which, "  ".join(f"{key} {value}" for key, value in figures[which].items()))
    return 0


def _runtime(args):
    """The runtime section, from a file of the workflow or from the arguments."""
    from cswin.config.resolve import load_runtime
    from cswin.config.runtime import Runtime
    from cswin.errors import UserError

    if args.runtime:
        return load_runtime(args.runtime)
    for name in ("batch", "workers"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: must be 1 or more")
    return Runtime(
        device_target=args.device_target, devices=1, eval_batch_size=args.batch, workers=args.workers, worker_kind="thread"
    )
