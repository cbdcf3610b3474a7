# make demo: the whole workflow on the handwritten digits. make test: the quick tests. Both install the packages into .venv first.
# make test-all: also the tests that train, except the large networks. make test-large: CSWin-B and -L (24 GB of memory).
# make report: report.html, the results of the demo in one file. make browser: installs what the test of the report needs.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
PYTHON := $(firstword $(foreach p,python3.11 python3.12 python3,$(shell $(p) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && command -v $(p))))

.PHONY: demo test test-all test-large lint report browser clean

demo: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --cores 8 results/final_acc.csv
	@echo "table: results/final_acc.csv   pages and pictures: results/digits/   all in one file: make report"

report: demo
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --report report.html

PYTEST = PATH="$(CURDIR)/$(BIN):$$PATH" GLOG_v=3 pytest

test: $(STAMP)
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-all: $(STAMP)
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder -m "not large" $(ARGS)

test-large: $(STAMP)
	$(PYTEST) -m large

lint: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH"; export PATH; \
	ruff check . && ruff format --check . && snakefmt --check Snakefile rules && snakemake --lint

# One resolver run over everything; requirements.txt holds every version.
$(STAMP): pyproject.toml requirements.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or 3.12 was found (MindSpore 2.8.0 has no packages for others). Install one, for"; \
	  echo "example 'apt-get install python3.11 python3.11-venv', or name it: make PYTHON=/path/to/python3.11 demo"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: install its venv package"; \
	  echo "(Debian, Ubuntu: apt-get install python3-venv)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c requirements.txt -e '.[workflow,export,dev]'
	$(BIN)/python -m pip check
	@touch $@

# Debian's Chromium, in which tests/report/test_report.py opens the report; without it the test is skipped with a message.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { \
	  test "$$(id -u)" = 0 -a -e /etc/debian_version || { echo "Install chromium and chromium-driver (apt-get, as root)"; exit 1; }; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium chromium-driver; }

clean:
	rm -rf $(VENV) .snakemake
