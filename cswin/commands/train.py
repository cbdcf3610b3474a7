"""Train one stage, or go on where it was interrupted.

Exit codes: 0 the stage is complete; 75 it was asked to stop (SIGTERM, SIGINT, SIGUSR1, --max-runtime) and has saved its state,
the same command goes on from there; 2 something that the user can put right; 1 a defect.
"""

from __future__ import annotations

from pathlib import Path


def configure(parser):
    parser.add_argument("--config", type=Path, required=True, help="the stage's resolved configuration")
    parser.add_argument("--runtime", type=Path, required=True, help="the resolved runtime section")
    parser.add_argument("--dataset", type=Path, required=True, help="dataset.json of the converted images")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the stage's folder")
    parser.add_argument("--previous", type=Path, metavar="CHECKPOINT", help="checkpoint to start from")
    parser.add_argument("--log", type=Path, help="log file; progress bars go to the terminal")
    parser.add_argument(
        "--max-runtime",
        metavar="TIME",
        help="stop and save before this time is over: 90, 45m, 11h, D-HH:MM:SS; in a Slurm job at the latest before it ends",
    )


def run(args):
    from cswin import scheduler
    from cswin.progress import Console, TrainProgress
    from cswin.train.stage import StageFiles, run_stage
    from cswin.train.stopping import parse_duration

    limits = [parse_duration(args.max_runtime) if args.max_runtime else None, scheduler.seconds_left()]
    limit = min((seconds for seconds in limits if seconds is not None), default=None)
    files = StageFiles(args.config, args.runtime, args.dataset, args.output, args.previous)
    with Console(args.log) as console:
        return run_stage(files, limit, lambda total, done: TrainProgress(console, total, done), console.say)
