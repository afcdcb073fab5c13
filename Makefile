# Everything a contributor or CI runs. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup quickstart train fmt lint imports types test test-ray test-wheel docs campaigns fuzz bench bench-quick bench-load bench-gather bench-encoded bench-serve bench-reload bench-scale bench-pages bench-device bench-report static check clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: $(READY)  ## Make the virtual environment with pinned dependencies

quickstart: setup  ## Load a captioned picture and sound set over HTTP and compare epochs; needs no hub
	$(BIN)/python quickstart_in_memory.py

train: setup  ## Train a small dual encoder on the demonstration set
	$(BIN)/python train_with_in_memory_datasets.py

fmt: setup  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup  ## Check format and style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

imports: setup  ## Check that imports point down the layers
	$(BIN)/lint-imports

types: setup  ## Check types, strictly
	$(BIN)/mypy

# Coverage is taken of what runs within the tests' own process; it would slow the starts of the others by a quarter.
test: setup  ## Run all tests but the campaigns and those of clusters, and check the coverage
	$(BIN)/python -m pytest -q -m 'not alone and not campaign and not ray' --numprocesses auto --dist worksteal --ignore tests/process --ignore tests/docs --cov --cov-report=term:skip-covered
	$(BIN)/python -m pytest -q -m 'not alone and not campaign and not ray' --numprocesses auto --dist worksteal tests/process tests/docs
	$(BIN)/python -m pytest -q -m alone

test-ray: setup  ## Run the tests on a real cluster of several nodes on this machine
	$(BIN)/python -m pytest -q -m ray

campaigns: setup  ## Run the tests of very many cases or processes: kills, full disks, hostile servers, one copy, benchmarks
	$(BIN)/python -m pytest -q -m campaign --numprocesses auto --dist loadscope

test-wheel: setup  ## Build the wheel and use it from an empty directory
	rm -rf build/wheel build/lib build/bdist.*
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	cd build && ../$(BIN)/python -I ../tests/docs/use_the_wheel.py wheel/*.whl

docs: setup  ## Run the examples in docstrings and guides
	$(BIN)/python -m pytest -q tests/docs/test_docstrings.py tests/docs/test_guides.py

fuzz: setup  ## Fuzz whatever reads what strangers wrote, a minute for each target; FUZZ=--seconds=600 for longer
	$(BIN)/python -m tests.fuzz $(FUZZ)

bench: bench-quick bench-load bench-gather bench-encoded bench-serve bench-reload bench-scale bench-report  ## Run all benchmarks but those of huge pages and of a GPU, and make the page of them

bench-quick: setup  ## Five epochs over 10,000 images: on the fly against in memory
	$(BIN)/python -m benchmarks.bench_quick

bench-load: setup  ## What loading costs, against bare loops and side by side with others; makes its own inputs in build
	$(BIN)/python -m benchmarks.load

bench-gather: setup  ## What serving costs against a bare copy of the same bytes
	$(BIN)/python -m benchmarks.bench_gather

bench-encoded: setup  ## What samples that lie encoded cost and save; needs the corpora
	$(BIN)/python -m benchmarks.encoded

bench-serve: setup  ## Side by side with other loaders, in environments of their own that it makes in build
	$(BIN)/python -m benchmarks.serve

bench-reload: setup  ## How soon a second process has its first batch, side by side; takes 32 GB of disk
	$(BIN)/python -m benchmarks.reload

bench-scale: setup  ## What a dataset in the memory of a Ray cluster costs, with all nodes on this machine, and a model
	$(BIN)/python -m benchmarks.scale

bench-pages: setup  ## What huge pages are worth; needs root, since it lets the kernel use them
	$(BIN)/python -m benchmarks.bench_pages

bench-device: setup  ## What batches cost on a GPU
	$(BIN)/python -m benchmarks.bench_device

bench-report: setup  ## Make docs/explanation/benchmarks.md and its charts of the results
	$(BIN)/python -m benchmarks.report

static: lint imports types  ## All checks that run nothing

check: test test-ray campaigns static test-wheel fuzz  ## All that CI runs

clean:  ## Remove what the other targets made
	rm -rf $(VENV) build outputs .coverage* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
