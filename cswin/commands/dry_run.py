"""Compile the training step and the evaluation of a stage for Ascend, without an NPU, and print what MindSpore makes of them.

CANN must be installed. No NPU is occupied and nothing is computed. Exit codes: 0 all is compiled, breaks no check and fits into the
device's memory; 1 it does not; 2 an error that the user can fix.
"""

from __future__ import annotations

from pathlib import Path

from cswin.distributed.backend import CHIPS
from cswin.errors import UserError


def configure(parser):
    parser.add_argument("config", type=Path, metavar="CONFIG", help="configuration file")
    parser.add_argument("--stage", metavar="NAME", help="the stage (default: the first one)")
    parser.add_argument(
        "--devices", type=int, metavar="N", help="devices, each with runtime.batch_size (default: runtime.devices)"
    )
    parser.add_argument("--chip", choices=CHIPS, default="910", help="the kind of device (default: %(default)s)")
    parser.add_argument(
        "--memory", type=int, metavar="GIB", help="memory of the device (default: 32 for 910, 64 for A2 and A3)"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep MindSpore's logs and graphs; must not exist")


def run(args):
    import tempfile

    from cswin.config.resolve import load_settings, resolve_stage
    from cswin.dry_run.run import Task, dry_run, succeeded, text

    for name, value in (("--devices", args.devices), ("--memory", args.memory)):
        if value is not None and value < 1:
            raise UserError(f"{name}: {value} must be positive")
    if args.keep and args.keep.exists():
        raise UserError(f"--keep: {args.keep} exists already; name a new folder")
    settings = load_settings(args.config)
    runtime = settings.runtime.model_copy(update={"devices": args.devices or settings.runtime.devices})
    task = Task(resolve_stage(settings, args.stage or next(iter(settings.stages))), runtime, args.chip)
    print(task, flush=True)
    if args.keep:
        try:
            args.keep.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"--keep {args.keep}: cannot be made a folder ({error.strerror}); name another one") from None
    memory, good = (args.memory or CHIPS[args.chip][1]) << 30, True
    with tempfile.TemporaryDirectory(prefix="cswin-dry-run-") as temporary:
        folder = args.keep.resolve() if args.keep else Path(temporary)
        for what in task.parts:
            compiled = dry_run(task, what, folder / what)
            print(text(compiled, memory), flush=True)
            good = good and succeeded(compiled, memory)
    return 0 if good else 1
