# Two commands: `make score IMAGES=folder` and `make test`. Each sets up .venv by itself.

# the first that runs and is 3.11 or 3.12: version managers leave stand-ins that only print an error
FIT := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for name in python3 python3.12 python3.11; do \
	$$name -c '$(FIT)' >/dev/null 2>&1 && { echo $$name; break; }; done)
VENV := .venv
RUN := $(VENV)/bin/python
OUT ?= scores

.PHONY: score test slow check clean
.DELETE_ON_ERROR:

score: $(VENV)/.ready
	@$(RUN) -m ageray score $(if $(IMAGES),'$(IMAGES)',--demo) --out '$(OUT)' --fresh

test: $(VENV)/.ready-dev
	$(RUN) -m pytest -n 2 --dist loadgroup -m 'not slow'

slow: $(VENV)/.ready-dev
	$(RUN) -m pytest -m slow

check: $(VENV)/.ready-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

$(VENV)/bin/python:
	@$(or $(PYTHON),false) -c '$(FIT)' || { echo 'error: needs Python 3.11 or 3.12; name one with make PYTHON=...' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml | $(VENV)/bin/python
	@echo 'setting up $(VENV): some minutes and gigabytes the first time'
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[photo]'
	@touch $@

$(VENV)/.ready-dev: pyproject.toml | $(VENV)/bin/python
	@echo 'setting up $(VENV): some minutes and gigabytes the first time'
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[photo,dev]'
	@touch $@ $(VENV)/.ready

clean:
	rm -rf $(VENV) scores scores-photos
