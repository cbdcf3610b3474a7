"""All checks, one after the other, and their files."""

from __future__ import annotations

import shutil
import tempfile
import time
from datetime import datetime
from pathlib import Path

from cswin.atomic import atomic_path
from cswin.distributed.backend import backend_of
from cswin.distributed.ranks import Ranks
from cswin.errors import UserError
from cswin.preflight.checks import exchanges, memory, overflow, resumption, same_bits, speed
from cswin.preflight.golden import golden
from cswin.preflight.result import FAILED, PASSED, verdict, write
from cswin.preflight.site import measure, prepare
from cswin.progress import Console
from cswin.provenance import versions
from cswin.run.stage import Stage

STEPS = 10  # of training proper


def preflight(stage: Stage, output: Path, console: Console, ranks: Ranks) -> None:
    """Make all checks of a run's first stage. The first rank writes `output` (JSON), the page, and a receipt if training may begin.

    Raises:
        UserError: if a, b, c or g has failed.
    """
    config, began = stage.config, time.monotonic()
    backend = backend_of(stage.runtime, ranks.device)
    backend.require_training(config.optimizer.amp_level, config.optimizer.amp_dtype)
    folder, receipt = output.with_name(f".{output.stem}_states"), output.with_suffix(".passed")
    if problem := ranks.agree(_problem(output, receipt) if ranks.first else None):
        raise UserError(problem)
    checks = golden(config.optimizer, ranks, backend)
    site = prepare(stage, ranks, folder)
    checks += exchanges(ranks, site.step.all_reduce) + (equal := same_bits(site, backend))
    try:
        checks += resumption(site, all(check.verdict == PASSED for check in equal))
    finally:
        if ranks.first:
            shutil.rmtree(folder, ignore_errors=True)
    rates = measure(site, STEPS)
    checks += overflow(site, rates) + memory(site, rates) + speed(site, rates)
    if ranks.first:
        facts = {
            "run": config.run, "stage": config.stage, "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - began), "devices": ranks.size, "amp_level": config.optimizer.amp_level,
            "amp_dtype": config.optimizer.amp_dtype, "backend": backend.record(), "versions": versions(),
        }  # fmt: skip
        write(output, facts, sorted(checks, key=lambda check: check.item))
    failed = " and ".join(dict.fromkeys(check.item for check in checks if check.verdict == FAILED))
    if failed := ranks.agree(failed or None):
        raise UserError(
            f"check {failed} failed: training would go wrong on these devices; {output.with_suffix('.md')} says what to do"
        )
    if ranks.first:
        with atomic_path(receipt) as temporary:
            temporary.write_text("training may begin\n")
        console.say(f"preflight: {verdict(checks)}; {output.with_suffix('.md')}")


def _problem(output: Path, receipt: Path) -> str | None:
    """Before the work: why the results cannot be written, if so. A receipt of earlier checks is removed."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        receipt.unlink(missing_ok=True)
        for file in (output, output.with_suffix(".md")):
            if file.is_dir():
                return f"{file}: is a folder; name a file"
        with tempfile.TemporaryFile(dir=output.parent):
            return None
    except OSError as error:
        return f"{output}: cannot be written ({error.strerror}); check the permissions of its folder, and that {receipt} is no folder"
