"""Draw pictures of a run from its files."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    pictures = parser.add_subparsers(dest="picture", required=True, metavar="PICTURE")
    for name, function, summary in (
        ("curves", _curves, "loss, learning rate and top-1 over all stages, also during training"),
        ("throughput", _throughput, "images per second and waiting for data over time, also during training"),
    ):
        picture = _picture(pictures, name, function, summary)
        picture.add_argument("folder", type=Path, metavar="FOLDER", help="results/<run>")
        picture.add_argument("--settings", type=Path, required=True, help="the run's expectations.yaml or stages.yaml")
    for name, function, summary in (
        ("classes", _classes, "accuracy by class"),
        ("predictions", _predictions, "correct and wrong predictions with their images"),
        ("samples", _samples, "augmented training samples as the network sees them"),
    ):
        picture = _picture(pictures, name, function, summary)
        picture.add_argument("--config", type=Path, required=True, metavar="FILE", help="resolved configuration of the stage")
        if name != "classes":
            picture.add_argument("--dataset", type=Path, required=True, metavar="FILE", help="dataset.json")
        if name != "samples":
            picture.add_argument("--predictions", type=Path, required=True, metavar="FILE", help="the stage's predictions.npz")


def _picture(pictures, name: str, function, summary: str) -> argparse.ArgumentParser:
    picture = pictures.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    picture.set_defaults(function=function)
    picture.add_argument("--output", type=Path, required=True, metavar="FILE", help="PNG file to write")
    return picture


def run(args: argparse.Namespace) -> None:
    args.function(args)


def _curves(args) -> None:
    from cswin.report.pictures.curves import draw_curves

    expected, stages = _stages(args)
    title = f"{expected.run}: {stages[0].config.model.arch}"
    draw_curves(stages, args.output, title=title, reported=expected.stages, paper=expected.paper_top1)


def _throughput(args) -> None:
    from cswin.report.pictures.throughput import draw_throughput

    expected, stages = _stages(args)
    draw_throughput(stages, args.output, title=f"{expected.run}: speed of training")


def _stages(args):
    """The run's expectations, and those of its stages that have validated an epoch."""
    from cswin.config.resolve import load_expectations
    from cswin.errors import UserError
    from cswin.report.run import load_run

    expected = load_expectations(args.settings)
    stages = [stage for stage in load_run(args.folder, list(expected.stages)) if stage.history.epochs]
    if not stages:
        raise UserError(f"{args.folder}: no stage has validated an epoch yet; there is nothing to draw")
    return expected, stages


def _classes(args) -> None:
    from cswin.report.classes import accuracy_with_mistakes
    from cswin.report.pictures.classes import draw_classes

    config, predictions, class_names, weights = _evaluated(args)
    classes = accuracy_with_mistakes(predictions, class_names)
    draw_classes(classes, args.output, title=f"{config.run}, {config.stage}: accuracy by class", weights=weights)


def _predictions(args) -> None:
    from cswin.data.store.dataset import Dataset
    from cswin.report.pictures.predictions import draw_predictions

    config, predictions, _, weights = _evaluated(args)
    title = f"{config.run}, {config.stage}: predictions"
    draw_predictions(predictions, Dataset.load(args.dataset), config, args.output, title=title, weights=weights)


def _evaluated(args):
    """A stage's configuration, the predictions of the weights that selected its checkpoint, class names, name of these weights."""
    from cswin.config.resolve import load_stage
    from cswin.predictions import load_predictions

    config = load_stage(args.config)
    results, class_names = load_predictions(args.predictions)
    which = config.evaluation.select_by if config.evaluation.select_by in results else "raw"
    return config, results[which], class_names, _WEIGHTS[which]


_WEIGHTS = {"raw": "raw weights", "ema": "moving average of the weights"}


def _samples(args) -> None:
    from cswin.config.resolve import load_stage
    from cswin.data.store.dataset import Dataset
    from cswin.report.pictures.samples import draw_samples

    config = load_stage(args.config)
    draw_samples(Dataset.load(args.dataset), config, args.output, title=f"{config.run}, {config.stage}: training samples")
