"""What a person sees of a run, through Snakemake itself."""

import re


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
