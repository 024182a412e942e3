PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test quick check bench faults soak docs builtin-base clean

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/.installed  ## the whole story on the built-in model: tune, measure, report
	$(BIN)/luthier run recipes/demo.yaml

test: $(VENV)/.installed-dev  ## everything (= CI), on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not soak" -n 2 --dist loadfile --durations=15

quick: $(VENV)/.installed-dev  ## the everyday part
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not soak" -n 2 --dist loadfile

check: $(VENV)/.installed-dev  ## format, lint, types, floors
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-dev  ## this engine against plain Trainer + PEFT, interleaved
	$(BIN)/luthier bench

faults: $(VENV)/.installed-dev  ## the fault matrix
	$(BIN)/python -m pytest tests/faults -m "not soak" -rA

soak: $(VENV)/.installed-dev  ## long fault campaigns
	$(BIN)/python -m pytest -m soak -rA --timeout=7200

builtin-base: $(VENV)/.installed  ## builds the built-in base again from its generator, into build/builtin
	$(BIN)/python -m luthier.models.builtin.build --out build/builtin

docs: $(VENV)/.installed-dev
	$(BIN)/python -m pip install -q mkdocs-material "mkdocstrings[python]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf build dist site .ruff_cache .mypy_cache
