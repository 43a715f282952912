# Every target does its own set-up: Python >= 3.10 with pip, make and a package index are all that it needs.
# make PYTHON=python3.12 test   chooses the interpreter; remove .venv (make clean) to change it later.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
EXTRAS := all,bench,dev

# What a target runs must not depend on the network, nor on who else uses the tokenizers' threads.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help setup demo studio test check format bench clean

help: ## what there is to run
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: $(STAMP) ## the virtual environment in .venv, versions pinned by constraints.txt

# The fallback serves systems that ship Python without ensurepip: their own pip fills the environment.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "Loraloom needs Python 3.10 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1): try make PYTHON=python3.12" >&2; exit 2; }
	@test -x $(PY) && $(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || \
	    { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(PY) install pip; }
	@$(PY) -m pip install --quiet -c constraints.txt setuptools
	@$(PY) -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP) ## LoRA and full fine-tuning of a real encoder side by side, then a sheet of pictures (ARGS=--json for data)
	@$(PY) -m loraloom demo $(ARGS)

studio: $(STAMP) ## the web page for making pictures and training (ARGS="--adapters DIR")
	@$(PY) -m loraloom studio $(ARGS)

test: $(STAMP) ## the tests, on two processes of one thread (ARGS="-k cli" for some of them)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 $(ARGS)

check: $(STAMP) ## formatting, lint, complexity limits, strict types
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

format: $(STAMP) ## put the formatting right
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(STAMP) ## every figure of docs/benchmarks.md, measured anew
	$(PY) -m bench $(ARGS)

clean: ## remove the environment and the caches; runs stay
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests bench examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
