"""Check the devices with the run's own network, loader and precision, before 190 hours are spent on them.

It writes preflight.json and, beside it, preflight.md for people and, if training may begin, preflight.passed. Exit codes: 0 training
may begin, perhaps with warnings; 2 it must not: the network computes something else (a), overflows are not handled (b), exchanges are
not exact (c), or a saved state does not continue (g).
"""

from __future__ import annotations

from pathlib import Path

from cswin.commands.train import add_stage_arguments


def configure(parser):
    add_stage_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="preflight.json; the others are beside it")


def run(args):
    from cswin.config.resolve import load_runtime
    from cswin.distributed.launcher import run_on_devices
    from cswin.progress import Console
    from cswin.run.stage import Stage, StageFiles

    files = StageFiles(args.config, args.runtime, args.dataset, args.output.parent, args.previous)
    ranks_folder = (args.log or args.output).with_suffix(".ranks")

    def work(ranks, started):
        from cswin.preflight.run import preflight

        with Console(args.log if ranks.first else None) as console:
            preflight(Stage.read(files), args.output, console, ranks)
        return 0

    return run_on_devices(load_runtime(args.runtime), ranks_folder, work, lambda: Stage.read(files))
