"""The command line: `cswin COMMAND …` or `python -m cswin COMMAND …`."""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import sys

from cswin import __version__
from cswin.distributed.backend import prepare_environment
from cswin.distributed.stopping import EXIT_CTRL_C, EXIT_USER
from cswin.errors import UserError

# Command -> what it does. Its code is cswin/commands/<command with underscores>.py.
COMMANDS = {
    "data": "make, extract, convert, verify and inspect datasets",
    "preflight": "check the devices before a run",
    "train": "train a stage, or resume it",
    "state": "show the saved state of a stage; accept changed versions, or set the state aside",
    "evaluate": "evaluate a checkpoint, on one dataset or on ImageNet's test sets",
    "status": "show the progress of runs, also of those on other machines",
    "table": "print or write the results table of a run",
    "verdict": "say whether a run reproduces the published figures",
    "card": "write the run card: what was trained, how, the result, what was not run",
    "draw": "draw pictures of a run: curves, throughput, classes, predictions, samples",
    "page": "write HTML pages about a run: table, configuration, provenance, data",
    "predict": "classify images",
    "export": "export a checkpoint to ONNX, MINDIR, or a folder for Hugging Face's hub",
    "average": "average checkpoints: several seeds, or several epochs",
    "weights": "list the weights that the authors have published; fetch and convert them",
    "convert-weights": "convert weights from and to PyTorch files, MindSpore checkpoints, safetensors",
    "profile": "print parameters, MACs and memory of an architecture",
    "plan": "estimate steps, files, memory and hours of a configuration",
    "dry-run": "compile a stage for Ascend without an NPU: kernels, memory",
    "config": "check or compare configurations; print the schema or the reference page",
}


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; importing a command's module is cheap."""
    parser = argparse.ArgumentParser(prog="cswin", description="CSWin Transformer training with MindSpore.")
    parser.add_argument("--version", action="version", version=f"cswin {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"cswin.commands.{name.replace('-', '_')}")
        command = commands.add_parser(name, help=summary, description=module.__doc__)
        module.configure(command)
        command.set_defaults(execute=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        0: done; 2: an error that the user can fix, named on stderr; 130: ended by Ctrl-C; other codes depend on the command.
    """
    os.environ.setdefault("GLOG_v", "3")  # only errors of MindSpore
    if unused := prepare_environment():
        print(f"cswin: {', '.join(unused)} is set and not used (docs/ascend.md)", file=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of any language, in a terminal of any encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    args = build_parser().parse_args(argv)
    try:
        return args.execute(args) or 0
    except UserError as error:
        print(f"cswin {args.command}: {error}", file=sys.stderr)
        return EXIT_USER
    except BrokenPipeError:  # `cswin … | head` is not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"cswin {args.command}: {where}{error.strerror} (df -h); free space and give the same command again",
            file=sys.stderr,
        )
        return EXIT_USER
    except KeyboardInterrupt:
        return EXIT_CTRL_C
