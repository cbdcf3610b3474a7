"""Show the progress of runs from their files, on any machine that sees them, also while a stage trains on another machine.

One run is shown with all its stages. Several runs are shown as a table with the current stage of each, and what is wrong.

States of a stage: done; running; interrupted (the same command resumes from the step shown); waiting; stale (the trainer's last
heartbeat is older than runtime.lease_timeout).
"""

from __future__ import annotations

from pathlib import Path

from cswin.layout import RESULTS


def configure(parser):
    parser.add_argument("runs", nargs="*", metavar="RUN", help="name or folder of a run (default: all)")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the runs (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead, for programs")
    parser.add_argument(
        "--watch", nargs="?", type=float, const=5.0, metavar="SECONDS", help="repeat until all are done (default: 5 s)"
    )


def run(args):
    import contextlib
    import time

    from cswin.errors import UserError
    from cswin.report.files import find_runs
    from cswin.report.status import status_of

    if args.watch is not None and args.watch <= 0:
        raise UserError(f"--watch {args.watch:g}: must be more than 0 seconds")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            runs = [status_of(folder) for folder in find_runs(args.results, args.runs)]
            _show(runs, args)
            if args.watch is None or all(stage.state == "done" for run in runs for stage in run.stages):
                return
            time.sleep(args.watch)


def _show(runs, args) -> None:
    import json
    import os
    import shutil
    import sys
    import time

    from cswin.report.status_text import BLOCKS, PLAIN, runs_text, status_text

    if args.json:
        print(json.dumps({"runs": [run.to_dict() for run in runs]}), flush=True)
        return
    terminal = sys.stdout.isatty()
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    colour = terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    if len(runs) > 1:
        text = runs_text(runs, shutil.get_terminal_size().columns)
    else:
        text = status_text(runs[0], colour, BLOCKS if unicode else PLAIN)
    if args.watch is not None:
        text = f"{text}\n\n{time.strftime('%H:%M:%S')}, every {args.watch:g} s; Ctrl-C ends this, not the training"
        text = f"\x1b[H\x1b[2J{text}" if terminal else f"{text}\n"
    print(text, flush=True)
