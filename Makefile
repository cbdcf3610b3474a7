# make demo: the whole workflow on the handwritten digits. make test: the quick tests. Both install the packages into .venv first.
# make test-all: also the tests that train, except the large networks. make test-large: CSWin-B and -L (30 GB of memory, or swap).
# make convergence: 10 trainings of the digits against 40 of the authors' code (benchmarks/convergence.py).
# make report: report.html, the results of the demo in one file. make browser: installs what the test of the report needs.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
UNFINISHED := $(VENV)/.unfinished
VERSION_CHECK := import sys; print((3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON := $(firstword $(foreach p,python3.11 python3.12 python3,$(shell $(p) -c '$(VERSION_CHECK)' 2>/dev/null | grep -q True && command -v $(p))))

.PHONY: demo test test-all test-large convergence lint report browser clean

demo: $(STAMP)
	PATH="$$PWD/$(BIN):$$PATH" snakemake --cores 8 results/final_acc.csv
	@echo "table: results/final_acc.csv   pages and pictures: results/digits/   all in one file: make report"

report: demo
	PATH="$$PWD/$(BIN):$$PATH" snakemake --report report.html

PYTEST = PATH="$$PWD/$(BIN):$$PATH" GLOG_v=3 pytest

test: $(STAMP)
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-all: $(STAMP)
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder -m "not large" $(ARGS)

test-large: $(STAMP)
	$(PYTEST) -m large

convergence: $(STAMP)
	PATH="$$PWD/$(BIN):$$PATH" snakemake --cores 2 data/digits/dataset.json
	$(BIN)/python benchmarks/convergence.py

# rules/lint.py is `snakemake --lint` without one complaint, that each rule should name a conda environment or a container: all rules
# run in the one environment that is made here, and there is no published image that holds cswin.
lint: $(STAMP)
	PATH="$$PWD/$(BIN):$$PATH"; export PATH; \
	ruff check . && ruff format --check . && snakefmt --check Snakefile rules && python rules/lint.py

# One resolver run over everything; requirements.txt holds every version. An environment that could not be finished is removed: at once,
# or, where make was killed, by the next one.
$(STAMP): pyproject.toml requirements.txt
	@test ! -e $(UNFINISHED) || rm -rf $(VENV)
	@test -e $(VENV) || { $(require_python); }
	@test -e $(VENV) || { mkdir $(VENV) && touch $(UNFINISHED); }
	@test ! -e $(UNFINISHED) || "$(PYTHON)" -m venv $(VENV) || $(give_up)
	@$(BIN)/python -c '$(VERSION_CHECK)' 2>/dev/null | grep -q True || { \
	  echo "$(VENV) is no environment of Python 3.11 or 3.12: remove it (rm -rf $(VENV)) and give the same command again"; exit 1; }
	@echo "installing into $(VENV) (3 GB, a few minutes)"
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet -c requirements.txt -e '.[workflow,export,parquet,dev]' || $(give_up)
	@$(BIN)/python -m pip check || $(give_up)
	@rm -f $(UNFINISHED)
	@touch $@

define require_python
test -n "$(PYTHON)" || { echo "No Python 3.11 or 3.12 was found (MindSpore 2.8.0 has no packages for others). Install one, for"; \
	  echo "example 'apt-get install python3.11 python3.11-venv', or name it: make PYTHON=/path/to/python3.11 demo"; exit 1; }; \
"$(PYTHON)" -c '$(VERSION_CHECK)' 2>/dev/null | grep -q True || { echo "$(PYTHON) is no Python 3.11 or 3.12 (MindSpore 2.8.0 has no"; \
	  echo "packages for others): name one, make PYTHON=/path/to/python3.11 demo"; exit 1; }; \
"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: install its venv package"; \
	  echo "(Debian, Ubuntu: apt-get install python3-venv)"; exit 1; }
endef
give_up = { test ! -e $(UNFINISHED) || rm -rf $(VENV); exit 1; }

# Debian's Chromium, in which tests/report/test_report.py opens the report; without it the test is skipped with a message.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { \
	  test "$$(id -u)" = 0 -a -e /etc/debian_version || { echo "Install chromium and chromium-driver (apt-get, as root)"; exit 1; }; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium chromium-driver; }

clean:
	rm -rf $(VENV) .snakemake
