# Commands from a bare machine (Python 3.11 or 3.12, git, make):
#   make run    set up, then the end-to-end pipeline on documents already on this machine; ARGS="sample.size=500" changes it
#   make test   set up, then lint, types and tests
#   make run-proof   set up with the extras proof and tune, then the proof pipeline
# They create the environment in .venv once and reuse it. Two choices, which hold until you make another:
#   TORCH=cpu             torch without CUDA: on Linux 2.8 GB less to download
#   EXTRAS="s3 azure"     extras of the project

PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
POETRY := .poetry-env/bin/poetry
ARGS ?=
CHOSEN := $(shell cat .venv/.complete 2>/dev/null)
TORCH ?= $(or $(firstword $(CHOSEN)),cuda)
EXTRAS ?= $(wordlist 2,99,$(CHOSEN))
export PYTHON TORCH EXTRAS

.PHONY: run run-proof test setup clean
.DEFAULT_GOAL := setup
ifneq ($(strip $(TORCH) $(EXTRAS)),$(CHOSEN))
.PHONY: .venv/.complete
endif

run: .venv/.complete
	$(POETRY) poe run-end-to-end-pipeline $(ARGS)

# The extras of what follows a filter are added to those that were chosen; gold documents with human scores are needed:
#   make run-proof ARGS="ablate.gold.paths='[gold.jsonl]'"
run-proof:
	$(MAKE) setup EXTRAS="$(sort $(EXTRAS) proof tune)"
	$(POETRY) poe run-proof-pipeline $(ARGS)

test: .venv/.complete
	$(POETRY) poe check
	$(POETRY) poe test $(ARGS)

setup: .venv/.complete

.venv/.complete: pyproject.toml poetry.lock poetry.toml .poetry-env/.complete
	tools/install.sh
	echo $(TORCH) $(EXTRAS) > $@

# Poetry and its plugins, in an environment separate from the project's.
.poetry-env/.complete: tools/poetry-requirements.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 found; install one, or name it: make PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv --clear .poetry-env
	.poetry-env/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

clean:
	rm -rf .venv .poetry-env
