"""Evaluate a checkpoint on converted images: every image exactly once, raw and EMA weights."""

from __future__ import annotations

from pathlib import Path


def configure(parser):
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="dataset.json of the converted images")
    parser.add_argument("--split", choices=("val", "train"), default="val")
    parser.add_argument("--runtime", type=Path, required=True, help="the resolved runtime section")
    parser.add_argument("--output", type=Path, required=True, help="JSON of the figures")
    parser.add_argument("--predictions", type=Path, required=True, help="NPZ of what was predicted for each image")


def run(args):
    import json

    import numpy as np

    from cswin.atomic import atomic_path
    from cswin.checkpoint import file_sha256, load_checkpoint
    from cswin.config.resolve import load_runtime
    from cswin.data.dataset import Dataset
    from cswin.evaluate import evaluate_checkpoint
    from cswin.train.state import accept

    runtime, dataset, checkpoint = load_runtime(args.runtime), Dataset.load(args.data), load_checkpoint(args.checkpoint)
    accept(args.checkpoint.parent / "state")
    results = evaluate_checkpoint(checkpoint, dataset, args.split, runtime)
    arrays = {"labels": results["raw"].labels}
    for which, predictions in results.items():
        arrays |= {f"{which}_top5": predictions.top5, f"{which}_losses": predictions.losses}
    with atomic_path(args.predictions) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    figures = {"checkpoint": file_sha256(args.checkpoint), "manifest": dataset.manifest_hash, "split": args.split}
    figures |= {which: predictions.figures() for which, predictions in results.items()}
    with atomic_path(args.output) as temporary:
        temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for which in results:
        print(which, " ".join(f"{key} {value}" for key, value in figures[which].items()))
