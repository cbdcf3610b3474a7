"""For tests of dry runs: another value for every key of the configuration, and many runs of snakemake in a short time."""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from cswin.config.fields import Section
from cswin.config.resolve import parse_settings
from cswin.config.settings import Settings, Stage
from cswin.errors import UserError

SUPPORT = Path(__file__).parent
LATER = {
    "stages.stage2.start_epoch": 3, "stages.stage2.epochs": 4, "stages.stage2.schedule.cool_length": 2,
    "stages.stage3.start_epoch": 4, "stages.stage3.epochs": 5, "stages.stage3.schedule.cool_length": 2,
}  # fmt: skip
# Keys that cannot be changed alone, with the changes that belong to them.
TOGETHER: dict[str, dict[str, Any]] = {
    "data.source": {"data.source": "archive", "data.archive": "given/a.tar.gz"},
    "data.path": {"data.source": "kaggle", "data.path": "given/a.tar.gz"},
    "data.archive": {"data.source": "archive", "data.archive": "given/a.tar.gz"},
    "data.train_archive": {"data.source": "ilsvrc2012"},
    "data.val_archive": {"data.source": "ilsvrc2012"},
    "data.devkit": {"data.source": "ilsvrc2012"},
    "data.folder": {"data.source": "folder", "data.folder": "given/images"},
    "data.classes": {"data.source": "archive", "data.archive": "given/a.tar.gz", "data.classes": 9},
    "augment.mixup_group": {"augment.mixup_group": 16},
    "optimizer.global_batch": {"optimizer.global_batch": 64, "runtime.batch_size": 64},
    "schedule.cool_length": {"schedule.cool_length": 1} | {f"stages.stage{i}.schedule.cool_length": 2 for i in (2, 3)},
    "schedule.tail_length": {"schedule.tail_length": 1, "stages.stage3.schedule.cool_length": 2},
    "evaluation.select_on": {"evaluation.select_on": "minival", "evaluation.minival_images": 100},
    "stages.stage2.start_epoch": {"stages.stage1.epochs": 3, "stages.stage1.schedule.cool_length": 1} | LATER,
    "stages.stage2.epochs": LATER | {"stages.stage2.start_epoch": 2},
    "pretrained": {"pretrained": "given/weights.safetensors"},
    "runtime.devices": {"runtime.devices": 2, "runtime.batch_size": 16},
    "runtime.nodes": {"runtime.nodes": 2, "runtime.devices": 2, "runtime.batch_size": 16},
    "runtime.host_file": {"runtime.host_file": "hosts", "runtime.nodes": 2, "runtime.devices": 2, "runtime.batch_size": 16},
    "runtime.batch_size": {"runtime.batch_size": 16, "runtime.accumulation": 2},
    "runtime.accumulation": {"runtime.batch_size": 16, "runtime.accumulation": 2},
}  # fmt: skip
ILSVRC = {f"data.{key}": f"given/{key}.tar" for key in ("train_archive", "val_archive", "devkit")}
for changes in TOGETHER.values():
    if changes.get("data.source") == "ilsvrc2012":
        changes |= ILSVRC


def all_keys(kind: type[Section] = Settings, prefix: str = "") -> list[str]:
    """Every key of the configuration, as section.key; those of a stage as stages.stage2.key."""
    keys = []
    for name, field in kind.model_fields.items():
        if prefix + name == "stages":
            keys += all_keys(Stage, "stages.stage2.")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys += all_keys(field.annotation, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def changed(values: dict, key: str) -> dict:
    """The configuration with another value of this key: the first candidate that is valid."""
    for change in [TOGETHER[key]] if key in TOGETHER else ({key: value} for value in _candidates(values, key)):
        result = copy.deepcopy(values)
        for name, value in change.items():
            *path, last = name.split(".")
            section = result
            for part in path:
                section = section.setdefault(part, {})
            section[last] = value
        try:
            if parse_settings(result) != parse_settings(values):
                return result
        except UserError:
            continue
    raise AssertionError(f"{key}: no candidate value is valid; add the key to TOGETHER with the other keys that must change")


def _candidates(values: dict, key: str) -> list:
    kind, now = Settings, parse_settings(values)
    *path, last = key.split(".")
    for part in path:
        now = now[part] if isinstance(now, dict) else getattr(now, part)
        kind = type(now) if isinstance(now, Section) else kind
    field, now = kind.model_fields[last], getattr(now, last)
    if isinstance(now, dict):  # a section of a stage: any key of it
        wanted = {"schedule": {"base_lr": 0.0007}, "optimizer": {"eps": 1e-7}, "augment": {"hflip": 0.25}}
        return [now | wanted.get(last, {}), {"drop_path": 0.1}, {"every": 2}]
    if isinstance(now, bool):
        return [not now]
    if isinstance(now, int | float) and not isinstance(now, bool):
        return [now + type(now)(1), now * 2, type(now)(now / 2), now / 2, now + 0.1]
    if now == []:
        return [[3]]
    if isinstance(now, list):
        return [[value * 1.01 for value in now], [now[0], now[1] * 0.99, *now[2:]], *map(list, itertools.permutations(now))]
    literals = list(itertools.chain.from_iterable(get_args(a) for a in _parts(field.annotation) if get_origin(a) is Literal))
    arches = ["cswin_64_12211_tiny_224", "rand-m2-n1-mstd0.5-inc0"]
    return [*literals, *arches, "other", 64, 50.0, 2000, [1, 1, 2, 2], [2, 2, 4, 4], [1, 1, 1, 1], [2, 2, 2, 2], True]


def _parts(annotation) -> list:
    """The members of a union, through Annotated."""
    if get_origin(annotation) is types.UnionType or str(get_origin(annotation)) == "typing.Union":
        return [part for argument in get_args(annotation) for part in _parts(argument)]
    return [annotation, *(part for part in get_args(annotation)[:1] if get_origin(part) is Literal)]


class Snakemake:
    """Runs snakemake with a stub for `cswin`. Each run is forked from a process that has already imported everything."""

    def __init__(self, folder: Path):
        self.output = folder / "output.txt"
        (folder / "bin").mkdir()
        stub = folder / "bin/cswin"
        stub.write_text(f"#!{sys.executable} -SE\n{(SUPPORT / 'stub_cswin.py').read_text()}")
        stub.chmod(0o755)
        srun = folder / "bin/srun"  # for several nodes: it starts the command once
        srun.write_text('#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\nexec "$@"\n')
        srun.chmod(0o755)
        path = f"{folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PATH": path, "CSWIN": str(SUPPORT.parents[1])},
        )

    def __call__(self, folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
        """Exit code and output."""
        order = {"folder": str(folder), "output": str(self.output), "arguments": arguments, "environment": environment}
        print(json.dumps(order), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline()), self.output.read_text()

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()


def jobs(output: str) -> Counter:
    """The jobs in the output of snakemake, of a dry run or a real one: rule and output files."""
    pattern = r"^(?:local)?rule (\w+):\n(?:    (?!output).*\n)*(?:    output: (.*)\n)?(?:    .*\n)*"
    return Counter((match[1], match[2]) for match in re.finditer(pattern, output, re.MULTILINE))


def reasons(output: str) -> tuple[str, ...]:
    """The jobs of a dry run with all their details, including the reasons, but without times, numbers and order."""
    listed = re.sub(r"^\[.*\]$|^    jobid: .*$", "", "".join(output.split("Job stats:")[1:2]), flags=re.MULTILINE)
    return tuple(sorted(" ".join(sorted(re.split(r"[\s,;]+", job))) for job in listed.split("\n\n")))


def copy_tree(folder: Path, target: Path) -> Path:
    """An independent copy with the same dates."""
    shutil.copytree(folder, target, symlinks=True)
    return target


def _serve() -> None:
    """Fork a snakemake for each line of stdin."""
    import snakemake.cli

    import cswin.workflow.session  # noqa: F401 (imported once, for all)

    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            os.chdir(order["folder"])
            os.environ.update(order["environment"])
            output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(output, stream)
            snakemake.cli.main(order["arguments"])
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
