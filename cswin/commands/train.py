"""Train one stage, or resume it.

If runtime.devices is above 1, this process starts one process per device; their logs are in a folder beside the log file.

Exit codes: 0 the stage is complete; 75 training was asked to stop (SIGTERM, SIGINT, SIGUSR1, --max-runtime) and has saved its
state, the same command resumes it; 2 an error that the user can fix; 130 a second Ctrl-C, which does not wait for the end of the
step; 1 an error of the program.
"""

from __future__ import annotations

from pathlib import Path


def add_stage_arguments(parser):
    """What a stage is read from (`cswin.run.stage.StageFiles`, but for its folder), and the log."""
    parser.add_argument("--config", type=Path, required=True, help="the stage's resolved configuration")
    parser.add_argument("--runtime", type=Path, required=True, help="the run's runtime.yaml")
    parser.add_argument("--dataset", type=Path, required=True, help="dataset.json of the converted images")
    parser.add_argument("--previous", type=Path, metavar="CHECKPOINT", help="checkpoint to start from")
    parser.add_argument("--log", type=Path, help="log file; progress bars are shown on the terminal only")


def configure(parser):
    add_stage_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the stage's folder")
    parser.add_argument(
        "--max-runtime",
        metavar="TIME",
        help="stop and save before this time has passed: 90, 45m, 11h, D-HH:MM:SS; the limit of a Slurm job counts too",
    )


def run(args):
    import time

    from cswin.config.resolve import load_runtime
    from cswin.distributed import slurm
    from cswin.distributed.launcher import run_on_devices
    from cswin.distributed.stopping import Stopping, parse_duration
    from cswin.progress import Console
    from cswin.run.stage import Stage, StageFiles
    from cswin.run.stage_run import run_stage

    given = parse_duration(args.max_runtime) if args.max_runtime else None
    files = StageFiles(args.config, args.runtime, args.dataset, args.output, args.previous)
    ranks_folder = args.log.with_suffix(".ranks") if args.log else args.output / "ranks"

    def train(ranks, started):
        with Console(args.log if ranks.first else None, append=True) as console:
            left = slurm.seconds_left()  # counted from now, not from the start
            limits = [given, left + time.monotonic() - started if left is not None else None]
            stopping = Stopping(min((limit for limit in limits if limit is not None), default=None), started)
            return run_stage(files, stopping, console, ranks)

    return run_on_devices(load_runtime(args.runtime), ranks_folder, train, lambda: Stage.read(files))
