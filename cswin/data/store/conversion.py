"""Converts the missing shards of a manifest, several at once."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from cswin.data.store.assemble import shard_entry, shard_name
from cswin.data.store.manifest import Summary, load_summary, save_plan
from cswin.data.store.mindrecord import convert_shard, keep_freed_memory
from cswin.errors import UserError
from cswin.layout import PLAN
from cswin.progress import Console


def plan_shards(summary_path: Path, shard_mb: int, shards: Path) -> Path:
    """Divide a manifest into shards of about `shard_mb` MiB. The plan is written to `shards`, beside them."""
    shards.mkdir(parents=True, exist_ok=True)
    save_plan(summary_path, shard_mb, shards / PLAN)
    return shards / PLAN


def convert_missing(images: Path, rows: Path, plan: Path, workers: int, console: Console) -> None:
    """Convert the shards of a plan that are missing or were made from other images. After an interruption, complete shards stay.

    Args:
        images: folder with train/ and val/.
        rows: the manifest's rows.
        plan: the file from `plan_shards`; the shards are written beside it.
        workers: number of processes; each one converts a shard at a time.
        console: for progress.

    Raises:
        UserError: as `convert_shard`, or if a process was killed; complete shards stay.
    """
    summary, shards = load_summary(plan), plan.parent
    missing = [
        (split, shard)
        for split, facts in summary.splits.items()
        for shard in range(facts.shards)
        if not _is_there(summary, split, shard, shards)
    ]
    if not missing:
        return
    # Not forked, because MindSpore has threads.
    context = multiprocessing.get_context("spawn")
    with (
        console.progress("convert", len(missing), "shards") as progress,
        ProcessPoolExecutor(min(workers, len(missing)), context, initializer=keep_freed_memory) as pool,
    ):
        waiting = {pool.submit(_convert, images, rows, plan, shard): shard for shard in missing}
        try:
            for done in as_completed(waiting):
                done.result()
                progress.update(1)
        except BrokenProcessPool as error:
            raise UserError(
                f"{shards}: a conversion was killed, most likely for want of memory (about 0.7 GB each); use fewer at once "
                "(snakemake --set-threads dataset=2 shard_plan=2, or --workers) and give the same command again"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _is_there(summary: Summary, split: str, shard: int, shards: Path) -> bool:
    try:
        return bool(shard_entry(summary, split, shard, shards, shards))
    except UserError:
        return False


def _convert(images: Path, rows: Path, plan: Path, shard: tuple[str, int]) -> None:
    with Path(os.devnull).open("w") as nowhere:
        output = plan.with_name(f"{shard_name(*shard)}.mindrecord")
        convert_shard(images, rows, plan, shard, output, Console(stream=nowhere))
