"""What a person sees of a run, through Snakemake itself."""

import logging
import re

from cswin.workflow.job_lines import JobLines


def test_one_line_per_finished_job_with_its_seconds(workspace):
    said = workspace.snakemake("results/digits/config/stage1.yaml", "results/digits/config/expectations.yaml").stdout
    lines = [line for line in said.splitlines() if " of 2  " in line]
    assert [re.sub(r"\d+s$", "Ns", line[8:]) for line in sorted(lines, key=lambda line: line[8:])] == [
        "expectations_config: Ns", "stage_config stage1: Ns"
    ]  # fmt: skip
    assert {line[:8] for line in lines} == {"1 of 2  ", "2 of 2  "}
    assert len(said.splitlines()) <= 8 and "Complete log" in said, said
    again = workspace.snakemake("results/digits/config/stage1.yaml").stdout
    assert "Nothing to be done" in again


def test_verbose_and_shell_commands_show_the_rest(workspace):
    for option in ("--verbose", "-p"):
        said = workspace.snakemake("-f", "results/digits/config/stage1.yaml", option).stdout
        assert "rule stage_config:" in said and "Job stats" in said and "1 of 1 steps (100%) done" in said


def test_errors_are_shown_in_full(workspace):
    (workspace.path / "images/train/a").mkdir(parents=True)
    wanted = ("-f", "data/digits/manifest.json", "--config", "data={source: folder, folder: images}")
    done = workspace.snakemake(*wanted, check=False)
    assert done.returncode == 1
    assert "Error in rule manifest:" in done.stdout and "(command exited with non-zero exit code)" in done.stdout
    log = (workspace.path / "data/digits/logs/manifest.log").read_text().strip()
    assert log and log in done.stdout


def test_lines_on_a_terminal_replace_the_progress_bar():
    """Seconds count from a job's last start; warnings are shown as Snakemake formats them."""
    lines, shown = JobLines(logging.Formatter("snakemake: %(message)s"), terminal=True), []

    def say(seconds, level=logging.INFO, message="", **extra):
        record = logging.makeLogRecord({"levelno": level, "msg": message, "created": seconds, **extra})
        if lines.filter(record):
            shown.append(lines.format(record))

    job = {"jobid": 7, "rule_name": "train_stage1", "wildcards": {}}
    say(100, event="job_info", **job)
    say(160, logging.ERROR, "failed", event="job_error", **job)
    say(161, message="Trying to restart job 7.")
    say(200, event="job_info", **job)
    say(275, event="job_finished", job_id=7)
    say(275, event="progress", done=3, total=9)
    say(276, message="Select jobs to execute...")
    say(277, logging.WARNING, "Select carefully")
    texts = [
        "snakemake: failed",
        "snakemake: Trying to restart job 7.",
        "3 of 9  train_stage1: 1m15s",
        "snakemake: Select carefully",
    ]
    assert shown == [f"\r\x1b[K{text}" for text in texts]
