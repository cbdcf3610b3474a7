"""Show the saved state of a stage, or decide what to do with it after the versions of the code have changed.

Without an option the state is only described. The options are refused while a trainer is at work in the folder.
"""

from __future__ import annotations

from pathlib import Path


def configure(parser):
    parser.add_argument("folder", type=Path, help="the stage's folder, for example results/digits/stage2")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--accept-versions", action="store_true", help="let the stage continue with the installed versions")
    choice.add_argument(
        "--set-aside", action="store_true", help="start the stage from its first step; its state is kept under a dated name"
    )


def run(args):
    from cswin.errors import UserError
    from cswin.layout import StageLayout
    from cswin.run.identity import code_of, differences, installed_code
    from cswin.run.lease import Lease, look
    from cswin.run.states import StateFolder

    states = StateFolder(StageLayout(args.folder).state, keep=2, say=print)
    if not states.path.is_dir():
        raise UserError(f"{states.path}: is missing; name the folder of a stage that has begun, results/<run>/<stage>")
    if args.set_aside or args.accept_versions:
        with Lease(args.folder, timeout=60.0):
            if args.set_aside:
                states.set_aside("starting the stage again was requested")
            elif states.look() is None:
                raise UserError(f"{states.path}: holds no undamaged state; the stage starts from its first step")
            else:
                states.accept_versions(installed_code())
                print(f"{args.folder}: continues with the installed versions")
        return 0
    state = states.look()
    if state is None:
        raise UserError(f"{states.path}: holds no undamaged state; the stage starts from its first step")
    print(f"step {state.step}, {'complete' if states.completed else 'not complete'}")
    for line in differences(code_of(state.meta["fingerprint"]), installed_code()):
        print(line)
    if found := look(args.folder):
        print(f"held by host {found.host}, process {found.pid}")
    return 0
