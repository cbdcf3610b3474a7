"""What the cluster's scheduler knows about the job in which this process runs."""

from __future__ import annotations

import os
import re
import subprocess


def seconds_left() -> float | None:
    """Seconds until the scheduler ends this job, counting what the job spent before this process began.

    None outside of a Slurm job, for a job without a limit, and where Slurm does not answer.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return None
    try:
        answer = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format", "%L"], capture_output=True, text=True, timeout=30, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return slurm_seconds(answer)


def slurm_seconds(text: str) -> float | None:
    """Seconds from Slurm's `[days-]hours:minutes:seconds` or `minutes:seconds`; None for UNLIMITED, INVALID and the like."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
