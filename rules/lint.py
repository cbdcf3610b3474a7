"""`snakemake --lint` without its complaint that a rule names no conda environment and no container (see the Makefile)."""

import sys

from snakemake.cli import main
from snakemake.linting.rules import RuleLinter

del RuleLinter.lint_missing_software_definition  # an error here: Snakemake has renamed it
main(["--lint", *sys.argv[1:]])
