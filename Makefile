# `make` alone explains itself. Each target sets up .venv by itself.

# the first that runs and fits: version managers leave stand-ins that only print an error
FIT := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for name in python3 python3.12 python3.13 python3.11; do \
	$$name -c '$(FIT)' >/dev/null 2>&1 && { echo $$name; break; }; done)
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --disable-pip-version-check --progress-bar on
OUT ?= $(if $(IMAGES),scores,demo)

.DEFAULT_GOAL := help
.PHONY: help setup score test slow check docs clean
.DELETE_ON_ERROR:

help:
	@echo 'make score IMAGES=DIR   the age of every face in the photos of DIR, into scores/ (or OUT=DIR);'
	@echo '                        the same command again goes on where it stopped; FRESH=1 begins anew'
	@echo 'make score              the same for drawn faces and a photo, into demo/'
	@echo 'make setup              only sets up .venv; `source .venv/bin/activate` then has the command ageray'
	@echo 'make check              lint, types, layers       make test    tests       make slow    the long tests'
	@echo 'make docs               the documentation as a site, into site/'
	@echo 'make clean              removes .venv, demo/ and site/'
	@echo
	@echo 'CPU=1 installs builds of PyTorch without CUDA, where there are any: TORCH_INDEX=URL names a package'
	@echo 'index that has them. PYTHON=... names the Python to use (3.11 to 3.13).'

score: $(VENV)/.ready
	@$(RUN) -m ageray score $(if $(IMAGES),'$(IMAGES)',--demo) --out '$(OUT)' $(if $(FRESH),--fresh)

setup: $(VENV)/.ready

test: $(VENV)/.ready-dev
	$(RUN) -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m 'not slow'

slow: $(VENV)/.ready-dev
	$(RUN) -m pytest -m slow

check: $(VENV)/.ready-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

docs: $(VENV)/.ready-docs
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet
	@echo 'open site/index.html'

$(VENV)/bin/python:
	@$(or $(PYTHON),false) -c '$(FIT)' || { echo 'error: needs Python 3.11, 3.12 or 3.13; name one with make PYTHON=...' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# With CPU=1, PyTorch is installed before the rest and from the index that TORCH_INDEX names. Without one, pip is
# asked whether its own index has a build without CUDA; where it has none, the default build is taken.
define install
	@echo 'setting up $(VENV): some minutes the first time, and up to 7 GB, most of it PyTorch with CUDA'
	$(if $(CPU),@$(if $(TORCH_INDEX),$(PIP) --index-url '$(TORCH_INDEX)' torch torchvision,$(PIP) --only-binary :all: $(CPU_BUILDS) 2>/dev/null) || \
		echo 'CPU=1: no builds of PyTorch without CUDA here; name an index that has them with TORCH_INDEX=URL. Taking the default.')
	$(PIP) -e '.[$(1)]'
endef
CPU_BUILDS := torch==2.14.1+cpu torchvision==0.29.1+cpu

$(VENV)/.ready: pyproject.toml | $(VENV)/bin/python
	$(call install,photo)
	@touch $@

$(VENV)/.ready-dev: pyproject.toml | $(VENV)/bin/python
	$(call install,photo$(comma)dev)
	@touch $@ $(VENV)/.ready

$(VENV)/.ready-docs: pyproject.toml | $(VENV)/bin/python
	$(call install,photo$(comma)docs)
	@touch $@ $(VENV)/.ready

comma := ,

clean:
	rm -rf $(VENV) demo demo-photos site
