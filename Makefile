# Everything a person or CI does here. Needs git, make, python3 (3.11 or later) and python3-venv; no root, and nothing is
# written outside this folder (pip's own cache aside).

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=

# What the caller's shell says about other Pythons must not leak into this one.
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV
export PIP_DISABLE_PIP_VERSION_CHECK := 1
PIP := $(BIN)/python -m pip --quiet --no-input

.PHONY: help
help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: venv
venv: $(VENV)/.package ## set up .venv from the lock (the others do it for you)

# Two stamps: the locked packages (slow, changes with the lock) and ourselves (quick, changes with pyproject.toml).
$(VENV)/.locked: requirements/test.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: python 3.11 or later is needed, but $(PYTHON) is $$($(PYTHON) --version 2>&1 | tail -n 1); try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: the venv module of $(PYTHON) is missing; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "setting up $(VENV) (a minute or two, once)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --require-hashes --only-binary :all: -r requirements/test.txt
	@touch $@

$(VENV)/.package: $(VENV)/.locked pyproject.toml agent/__init__.py
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dask: requirements/dask.txt $(VENV)/.locked
	@$(PIP) install --require-hashes --only-binary :all: -r requirements/dask.txt
	@touch $@

.PHONY: demo
demo: $(VENV)/.package $(VENV)/.dask ## a cluster and the main job on an embedded cloud, in two minutes; KEEP=1 leaves it running
	@exec $(BIN)/python -m tests.demo $(if $(filter-out 0,$(KEEP)),--keep) $(ARGS)

.PHONY: test
test: $(VENV)/.package $(VENV)/.dask ## all tests; what is skipped is listed with the reason (ARGS="-k name" for some)
	@# Hundreds of daemons are started: none compiles a module of its own.
	@$(BIN)/python -m compileall -q agent
	@exec $(BIN)/python -m pytest -n auto --dist loadgroup $(ARGS)

$(VENV)/.charts: requirements/charts.txt $(VENV)/.locked
	@$(PIP) install --require-hashes --only-binary :all: -r requirements/charts.txt
	@touch $@

.PHONY: fleet
fleet: $(VENV)/.package $(VENV)/.charts ## draw what STS sees of ten thousand agents: build/fleet.png
	@exec $(BIN)/python -m tests.simulation.fleet $(ARGS)

$(VENV)/.mutants: requirements/mutants.txt $(VENV)/.locked
	@$(PIP) install --require-hashes --only-binary :all: -r requirements/mutants.txt
	@touch $@

.PHONY: mutants
mutants: $(VENV)/.package $(VENV)/.mutants ## change the code in small ways: what do the tests not notice? (ARGS="core --sample 0")
	@exec $(BIN)/python -m tests.mutants $(ARGS)

$(VENV)/.lint: requirements/lint.txt $(VENV)/.locked
	@$(PIP) install --require-hashes --only-binary :all: -r requirements/lint.txt
	@touch $@

.PHONY: lint
lint: $(VENV)/.package $(VENV)/.lint ## format, lint, types, which package imports which; what is unused, what is undeclared
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/deptry --no-ansi agent

.PHONY: format
format: $(VENV)/.package ## format and fix what can be fixed
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: readme
readme: $(VENV)/.package ## put the made parts of the README in place
	@$(BIN)/python -m tests.readme

.PHONY: bench
bench: $(VENV)/.package $(VENV)/.charts ## how fast and how large the daemon is, beside nginx, AWS's helper and Go (ARGS=--quick)
	@exec $(BIN)/python -m tests.bench $(ARGS)

# An environment of its own, beside its stamp, from the lock that the stamp names first.
define SEPARATE_VENV
@$(PYTHON) -m venv --clear $(@D)
@$(@D)/bin/python -m pip --quiet --no-input install --require-hashes --only-binary :all: -r $<
@touch $@
endef

# The clients are large (1.4 GB), so they have a venv of their own, and only `make matrix` needs it.
$(VENV)-clients/.locked: requirements/clients.txt $(VENV)/.locked
	@echo "setting up $(VENV)-clients (a few minutes, once)"
	$(SEPARATE_VENV)

.PHONY: clients
clients: $(VENV)/.package $(VENV)-clients/.locked ## the SDKs of the matrix, in each language whose toolchain is here (1.4 GB)
	@$(BIN)/python -m tests.matrix.build

.PHONY: matrix
matrix: clients ## every SDK in every state, as a table: build/matrix/table.md (ARGS=--readme)
	@MATRIX_PYTHON=$(abspath $(VENV)-clients/bin/python) $(BIN)/python -m tests.matrix $(ARGS)

# So has a Ray cluster (300 MB): its nodes have nothing of ours to import.
$(VENV)-ray/.locked: requirements/ray.txt $(VENV)/.locked
	@echo "setting up $(VENV)-ray (half a minute, once)"
	$(SEPARATE_VENV)

.PHONY: ray
ray: $(VENV)/.package $(VENV)-ray/.locked ## forward to a real Ray cluster (300 MB)
	@FORWARD_RAY_PYTHON=$(abspath $(VENV)-ray/bin/python) $(BIN)/python -m pytest tests/unit/forward/test_ray.py $(ARGS)

# uv only resolves; installing needs nothing but pip. The lock serves every Python from 3.11 on, on every Linux.
LOCK := $(VENV)-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --no-annotate --custom-compile-command 'make lock' $(ARGS)

.PHONY: lock
lock: ## resolve pyproject.toml and requirements/*.in anew (ARGS=--upgrade for newer versions)
	@test -x $(VENV)-lock/bin/uv || { $(PYTHON) -m venv $(VENV)-lock && $(VENV)-lock/bin/python -m pip --quiet install uv; }
	$(LOCK) pyproject.toml --output-file requirements/runtime.txt
	@# Ubuntu 22.04's Python is 3.11.0rc1, and its pip compares no candidate: ask for 3.11 instead.
	sed -i.old "s/python_full_version \([<>]=*\) '\([0-9]*\.[0-9]*\)'/python_version \1 '\2'/" requirements/runtime.txt
	rm requirements/runtime.txt.old
	$(LOCK) pyproject.toml requirements/test.in --constraint requirements/runtime.txt --output-file requirements/test.txt
	$(LOCK) requirements/clients.in --output-file requirements/clients.txt
	$(LOCK) requirements/charts.in --constraint requirements/test.txt --output-file requirements/charts.txt
	$(LOCK) requirements/dask.in --constraint requirements/test.txt --output-file requirements/dask.txt
	$(LOCK) requirements/ray.in --constraint requirements/test.txt --output-file requirements/ray.txt
	$(LOCK) requirements/mutants.in --constraint requirements/test.txt --output-file requirements/mutants.txt
	$(LOCK) requirements/build.in --constraint requirements/test.txt --output-file requirements/build.txt
	$(LOCK) requirements/wheel.in --constraint requirements/test.txt --output-file requirements/wheel.txt
	$(LOCK) requirements/audit.in --constraint requirements/test.txt --constraint requirements/build.txt --output-file requirements/audit.txt
	$(LOCK) requirements/lint.in --constraint requirements/test.txt --output-file requirements/lint.txt

# What makes packages: an environment of its own, and nfpm, which is a Go program (requirements/nfpm locks it and its modules).
$(VENV)-build/.locked: requirements/build.txt
	$(SEPARATE_VENV)

$(VENV)-build/nfpm: requirements/nfpm/go.mod requirements/nfpm/go.sum $(VENV)-build/.locked
	@command -v go >/dev/null || { echo "error: nfpm is a Go program: install Go, or put nfpm at $@" >&2; exit 1; }
	@go build -C requirements/nfpm -mod=readonly -trimpath -o $(abspath $@) github.com/goreleaser/nfpm/v2/cmd/nfpm

.PHONY: build-tools
build-tools: $(VENV)-build/nfpm

.PHONY: packages
packages: $(VENV)-build/nfpm ## the .deb and the .rpm, what is in them, checksums: build/packages (needs Go)
	@BUILD=$(abspath $(VENV)-build) NFPM=$(abspath $(VENV)-build/nfpm) packer/package.sh build/packages $(ARGS)

$(VENV)-audit/.locked: requirements/audit.txt
	$(SEPARATE_VENV)

# Strict: a package of which nobody could be asked is an error, not a package without weaknesses.
.PHONY: audit
audit: $(VENV)-audit/.locked ## is a weakness known of what is installed on workers, or of what builds it? (asks PyPI's advisories)
	@$(VENV)-audit/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off --desc off \
	  $(foreach lock,runtime build wheel audit,-r requirements/$(lock).txt) $(ARGS)

.PHONY: image
image: $(VENV)/.package ## build an image with packer and qemu, boot it, check it (root; a quarter of an hour, needs no KVM)
	@exec $(BIN)/python -u -m tests.system.virtual $(or $(ARGS),build/image)

.PHONY: clean
clean: ## remove everything that was made here
	rm -rf $(VENV) $(VENV)-lock $(VENV)-clients $(VENV)-ray $(VENV)-build $(VENV)-audit build dist .mypy_cache .ruff_cache .pytest_cache \
	  .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
