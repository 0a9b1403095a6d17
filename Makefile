# Two commands: `make demo` plans a deployment from a shipped production trace, `make test` checks everything.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
CONSTRAINTS ?= -c constraints.txt
WORKERS ?= logical

.PHONY: demo test lint install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(CONSTRAINTS) -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/fwopt tune workloads/azure-2023-conv.csv.gz --rate-scale 16 --model Qwen/Qwen3-8B --hardware h200:8 \
	  --slo 'ttft:p99<2s' --slo 'tpot:p95<50ms' --minimize cost --out reports/demo --force

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Tests that judge times, or kill servers at a moment, go last, with nothing beside them.
test: lint
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m 'not alone'
	$(BIN)/pytest -m alone

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
