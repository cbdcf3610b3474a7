"""What is used of Snakemake beyond its documentation: where, and that it is there. A failure names the attribute that has changed."""

import json
import re
import subprocess
import sys

from conftest import ROOT

from cswin.workflow import internals

# Attributes of `workflow` and what they are, before and after planning.
WHEN_READ = {
    "is_main_process": "bool",
    "output_settings.dryrun": "bool",
    "output_settings.verbose": "bool",
    "output_settings.printshellcmds": "bool",
    "configfiles": "list",
    "config_settings.config": "dict",
    "resource_settings.default_resources": "Resources",
    "resource_settings.max_threads": "int",
}
WHEN_PLANNED = {
    "dag.forcefiles": "set",
    "dag.needrun_jobs": "method",
    "dag.reason": "method",
    "dag.jobs": "dict_keys",
    "persistence.input": "method",
}
SNAKEFILE = """
import json, operator
from snakemake.logging import logger

def kinds(names):
    found = {}
    for name in names:
        try:
            found[name] = type(operator.attrgetter(name)(workflow)).__name__
        except AttributeError as error:
            found[name] = str(error)
    print("KINDS", json.dumps(found))

kinds(WHEN_READ)
default = workflow.resource_settings.default_resources["runtime"]
print("DEFAULT", json.dumps([default.raw, default.value, default.is_evaluable()]))
print("HANDLERS", json.dumps([handler.name for handler in logger.handlers]))

rule all:
    output: "out"
    shell: "touch {output}"

onstart:
    kinds(WHEN_PLANNED)
    [job] = workflow.dag.needrun_jobs()
    print("JOB", json.dumps([job.rule.name, workflow.dag.reason(job).forced, "out" in workflow.dag.forcefiles]))
"""


def test_attributes_are_there(tmp_path):
    lists = f"WHEN_READ = {list(WHEN_READ)}\nWHEN_PLANNED = {list(WHEN_PLANNED)}\n"
    (tmp_path / "Snakefile").write_text(lists + SNAKEFILE)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "-f", "out", "--max-threads", "3", "--config", "key=1"]
    done = subprocess.run(
        [*command, "--default-resources", "runtime=5"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    said = [line.split(" ", 1) for line in done.stdout.splitlines()]
    kinds = [json.loads(value) for word, value in said if word == "KINDS"]
    assert kinds == [WHEN_READ, WHEN_PLANNED], done.stderr
    facts = {word: json.loads(value) for word, value in said if word in ("DEFAULT", "HANDLERS", "JOB")}
    assert facts == {
        "DEFAULT": [5, 5, False],
        "HANDLERS": [internals.HANDLER, "DefaultLogFileHandler"],
        "JOB": ["all", True, True],
    }


def test_they_are_used_in_one_module():
    """In the rules `workflow` is only handed on; besides, `cswin` takes errors and messages from Snakemake."""
    source = (ROOT / "cswin/workflow/internals.py").read_text()
    used = set(re.findall(r"\b(?:_workflow|\w*settings|dag|persistence)(?=\.(\w+))", source))
    assert used == {part for name in {*WHEN_READ, *WHEN_PLANNED} for part in name.split(".")}
    for file in [ROOT / "Snakefile", *ROOT.glob("rules/**/*.smk")]:
        assert re.findall(r"(?<![./])\bworkflow\.\w+", file.read_text()) == [], file
    importing = {
        file.relative_to(ROOT).as_posix() for file in ROOT.glob("cswin/**/*.py") if "from snakemake" in file.read_text()
    }
    assert importing == {"cswin/workflow/internals.py"}
