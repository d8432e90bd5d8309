# Two commands do everything: `make demo` and `make test`. Each sets up what it needs.
PYTHON_BIN := .venv/bin
# Tensor threads that spin while they wait slow each other down where tests share the cores.
export OMP_WAIT_POLICY ?= PASSIVE
PYTEST := $(PYTHON_BIN)/python -m pytest

.PHONY: demo postgres promtool namespaces crds chromium test test-all test-cookbook test-sdk-matrix sdk-coverage check docs golden bench bench-report setup format clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt scripts/setup.sh
	@scripts/setup.sh

demo: setup  ## fetch a real model, serve it, teach it SQL; FULL=1 runs the recorded size
	@$(PYTHON_BIN)/python -m recipes.demo $(if $(FULL),--full)

postgres:
	@scripts/postgres.sh

promtool:
	@scripts/promtool.sh

namespaces:
	@scripts/namespaces.sh

crds: setup
	@scripts/crds.sh

chromium:
	@scripts/chromium.sh

test: setup postgres promtool namespaces crds chromium  ## everything that takes less than a minute each, two files at a time
	$(PYTEST) -q -n 2 --dist loadfile

test-all: setup postgres promtool namespaces crds chromium  ## the slow ones too
	$(PYTEST) -q -m "not gpu"

test-cookbook: setup  ## tinker-cookbook's recipes, unmodified and offline; writes their table in docs/cookbook.md
	$(PYTEST) -q -m slow tests/cookbook --table docs/cookbook.md

sdk-coverage: setup  ## run the tests of the SDK's methods and commands; write docs/sdk-coverage.md
	PYTHONPATH=. $(PYTHON_BIN)/python scripts/sdk_coverage.py

test-sdk-matrix: setup  ## SDK versions 0.18 to the newest, each in a virtual environment of its own; writes docs/sdk-versions.md
	$(PYTEST) -q -m slow tests/sdk_matrix
	$(PYTHON_BIN)/python -m tests.sdk_matrix.page

check: setup  ## style, types, layers, sizes
	$(PYTHON_BIN)/ruff check .
	$(PYTHON_BIN)/ruff format --check .
	$(PYTHON_BIN)/pyright
	$(PYTHON_BIN)/lint-imports
	$(PYTEST) -q tests/test_shape.py

docs: setup  ## the page of error codes, from the code
	$(PYTHON_BIN)/python -c "from openrl.gateway.error_help import markdown_page; print(markdown_page(), end='')" > docs/errors.md

golden: setup  ## the recorded renderings of the chart, anew
	$(PYTHON_BIN)/python -m tests.kubernetes.record

bench: setup  ## every benchmark that runs on this machine; JSON line last
	$(PYTHON_BIN)/python -m bench.api --json
	$(PYTHON_BIN)/python -m bench.cpu --json
	$(PYTHON_BIN)/python -m bench.custom_loss --json
	$(PYTHON_BIN)/python -m bench.flags --json
	$(PYTHON_BIN)/python -m bench.sim --json

bench-report: setup  ## tables and plots of what benchmarks recorded with --record: bench/results
	$(PYTHON_BIN)/python -m bench.report

format: setup
	$(PYTHON_BIN)/ruff check --fix .
	$(PYTHON_BIN)/ruff format .

clean:
	rm -rf .venv .openrl build dist
