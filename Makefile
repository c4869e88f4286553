# make test         lint, types and tests on the pinned versions, then the tests on today's newest ones
# make demo         makes a world of videos, trains a small model on it, and shows what it learned
# make help         the rest

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
LATEST := .venv-latest
# The first interpreter that is new enough; `make test PYTHON=python3.12` chooses another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
PYTEST_ARGS ?=
# Tests run in as many processes as there are cores, at most 4, those of a file in one and in their order;
# `make test WORKERS=0` runs all in one.
WORKERS ?= logical
IN_PARALLEL := -n $(WORKERS) --maxprocesses 4 --dist loadfile
# What the second leg runs; `make test LATEST_TESTS=` leaves that leg out.
LATEST_TESTS ?= tests

# An environment is current when a stamp named after the contents of these files is in it (dates do not matter, so
# that a fresh clone beside a kept environment installs nothing).
KEY := $(shell cat pyproject.toml constraints.txt | cksum | tr ' ' '-')
LATEST_KEY := $(shell cksum < pyproject.toml | tr ' ' '-')
STAMP := $(VENV)/.installed-$(KEY)
LATEST_STAMP := $(LATEST)/.installed-$(LATEST_KEY)

# $(call bootstrap,DIRECTORY): an environment that holds the pinned uv, which installs the rest.
define bootstrap
	@test -x $(1)/bin/uv || { \
		python="$(PYTHON)"; \
		"$${python:-none}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
			echo "Python 3.11 or newer is needed, found '$$python'; name one: PYTHON=/path/to/python3.11" >&2; exit 1; }; \
		"$$python" -m venv $(1) && \
		$(1)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv; }
endef

.PHONY: help env env-latest test test-pinned test-latest test-common test-corpus test-fuzz lint format demo docs constraints clean

help: ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '%-14s %s\n' "$$name" "$$text"; done

env: $(STAMP) ## create .venv with the versions in constraints.txt

$(STAMP): | pyproject.toml constraints.txt
	$(call bootstrap,$(VENV))
	$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --constraint constraints.txt \
		--build-constraint constraints.txt --editable '.[training,dev]'
	@rm -f $(VENV)/.installed-*
	@touch $@

env-latest: $(LATEST_STAMP) ## create .venv-latest: newest versions of everything, without torchaudio

# The overrides lift the bounds that torchaudio puts on torch, and leave torchaudio itself out.
$(LATEST_STAMP): | pyproject.toml constraints.txt
	$(call bootstrap,$(LATEST))
	printf '%s\n' torch torchvision "torchaudio; python_version < '3'" > $(LATEST)/overrides.txt
	$(LATEST)/bin/uv pip install --quiet --python $(LATEST)/bin/python --upgrade \
		--override $(LATEST)/overrides.txt --editable '.[training,dev]'
	@rm -f $(LATEST)/.installed-*
	@touch $@

test: lint test-pinned $(if $(strip $(LATEST_TESTS)),test-latest) ## lint, types, tests on pinned and on newest versions

test-pinned: $(STAMP) ## the tests on the versions in constraints.txt
	$(VENV)/bin/python -m pytest $(IN_PARALLEL) $(PYTEST_ARGS)

test-latest: $(LATEST_STAMP) ## the tests on today's newest torch and torchvision, without torchaudio
	@$(LATEST)/bin/python -c 'import importlib.util, torch, torchvision; \
		assert importlib.util.find_spec("torchaudio") is None, "torchaudio is installed in $(LATEST)"; \
		print("newest: torch", torch.__version__, "torchvision", torchvision.__version__)'
	$(LATEST)/bin/python -m pytest -o cache_dir=$(LATEST)/.pytest_cache $(IN_PARALLEL) $(PYTEST_ARGS) $(LATEST_TESTS)

# Their tests are not in the wheel; the source distribution is fetched into the environment once.
test-common: $(STAMP) ## transformers' own common tests over our classes
	version="$$($(VENV)/bin/python -c 'import transformers; print(transformers.__version__)')"; \
	source="$(VENV)/sdist/transformers-$$version"; \
	test -d "$$source/tests" || { \
		$(VENV)/bin/python -m pip download --quiet --no-binary :all: --no-deps --no-build-isolation \
			--dest $(VENV)/sdist "transformers==$$version" && \
		tar -xzf "$$source.tar.gz" -C $(VENV)/sdist && rm "$$source.tar.gz"; }; \
	TRANSFORMERS_TESTS="$$source" $(VENV)/bin/python -m pytest $(PYTEST_ARGS) tests/common

# FFmpeg is the wheel's; CAVMAE_SYNC_FFMPEG names another.
test-corpus: $(STAMP) ## the files of a folder, MEDIA=folder, against FFmpeg's command line
	@test -n "$(MEDIA)" || { echo "Say which folder: make test-corpus MEDIA=folder" >&2; exit 1; }
	$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --constraint constraints.txt imageio-ffmpeg
	CAVMAE_SYNC_MEDIA="$(abspath $(MEDIA))" $(VENV)/bin/python -m pytest $(PYTEST_ARGS) -m corpus tests/corpus

test-fuzz: $(STAMP) ## some thousand damaged files in bounded processes (options: make test-fuzz ARGS="--seed 1")
	$(VENV)/bin/python tests/fuzz/damage.py $(ARGS)

lint: $(STAMP) ## ruff (lint and format) and mypy
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy src

format: $(STAMP) ## let ruff fix what it can and format
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

demo: $(STAMP) ## run training/demo.py (options: make demo ARGS="...")
	$(VENV)/bin/python training/demo.py $(ARGS)

docs: $(STAMP) ## build the documentation into docs/_build/html
	$(VENV)/bin/python -m sphinx --fail-on-warning --quiet --builder html docs docs/_build/html

# Keeps every version that still fits and adds what is missing; UPGRADE=1 moves all of them to the newest that fit.
constraints: ## refresh constraints.txt from pyproject.toml (UPGRADE=1: to the newest versions)
	$(call bootstrap,$(VENV))
	$(VENV)/bin/uv pip compile --quiet --python $(VENV)/bin/python --extra training --extra ray --extra benchmarks --extra dev \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-index-annotation \
		$(if $(UPGRADE),--upgrade) --output-file constraints.txt pyproject.toml

clean: ## remove environments, caches and builds
	rm -rf $(VENV) $(LATEST) .mypy_cache .pytest_cache .ruff_cache build dist docs/_build
	find src tests training -name __pycache__ -type d -prune -exec rm -rf {} +
