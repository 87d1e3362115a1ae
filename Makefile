# Nearline: `make up` to use it, `make setup` to work on it. Each target installs what it needs.

VENV := .venv
BIN := $(VENV)/bin
# Where `make up` mounts, and options for pytest or the benchmark: make test ARGS="-k config"
DIR ?=
# For `make conformance`: the source of pjdfstest, and how many random operations on bytes.
PJDFSTEST ?=
FSX ?= 30000
# For `make bench-soak`.
MINUTES ?= 20
ARGS ?=

# Tests are compiled once, and not by each process in each run, also where that is switched off.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup up quick test test-systemd check lock audit conformance bench bench-quick \
	bench-curves bench-soak bench-hostile install-helper install-units
.DEFAULT_GOAL := help

help:
	@echo "make up [DIR=~/Nearline]   server, account and mount, until Ctrl-C"
	@echo "make setup                 everything needed to work on Nearline"
	@echo "make test [ARGS=...]       the tests; those of real mounts need /dev/fuse"
	@echo "make test-systemd          units, fstab, autofs, power off under a systemd that boots (as root)"
	@echo "make quick [ARGS=...]      the tests without processes, real mounts, power loss; fewer examples"
	@echo "make check                 lint, format, types, layers, dialect, references, the wheel"
	@echo "make lock [ARGS=--upgrade] requirements/*.txt anew, after a change of pyproject.toml"
	@echo "make audit                 known weaknesses of what is locked; asks a source of advisories"
	@echo "make conformance [PJDFSTEST=SOURCE]   POSIX test suites on a real mount (as root, minutes)"
	@echo "make bench [ARGS=...]      the benchmark, with peers beside us"
	@echo "make bench-quick           the same with small inputs, the ratios that matter; two minutes"
	@echo "make bench-curves          what things cost as they grow; plots into docs/curves"
	@echo "make bench-soak [MINUTES=20]   two devices work; what grows; into build/"
	@echo "make bench-hostile         one who attacks a server beside one who works on it"
	@echo "make install-helper        mount -t nearline (as root)"
	@echo "make install-units         systemd units for this user"

# A working copy that was set up for development stays so; `make up` alone needs less.
$(VENV)/.dev: pyproject.toml scripts/setup requirements/build.txt requirements/dev.txt
	@scripts/setup dev

$(VENV)/.server: pyproject.toml scripts/setup requirements/build.txt requirements/server.txt
	@scripts/setup $(if $(wildcard $(VENV)/.dev),dev,server)

setup: $(VENV)/.dev

up: $(VENV)/.server
	@$(BIN)/nearline up $(DIR)

# The tests of a file share servers and mounts, so a file stays with one process. One process more
# than there are processors, because some of the time is waiting. In the order of collection
# (tests/conftest.py), and not by how many tests a file has: few may take longest.
test: $(VENV)/.dev
	@$(BIN)/pytest -n $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --dist loadfile --no-loadscope-reorder $(ARGS)

# A systemd of its own as process 1, in namespaces: this machine's files are read, its network is not
# there. As root, on a machine with systemd and a cgroup2; minutes. With autofs installed, that too.
test-systemd: $(VENV)/.dev
	@NEARLINE_BOOTED=1 $(BIN)/pytest tests/booted $(ARGS)

# Without what is slow (CONTRIBUTING.md), and less of what is random.
quick: $(VENV)/.dev
	@NEARLINE_QUICK=1 $(BIN)/pytest -n $$(getconf _NPROCESSORS_ONLN) --dist loadfile \
		-o tmp_path_retention_policy=failed \
		--ignore tests/system --ignore tests/power --ignore tests/booted $(ARGS)

check: $(VENV)/.dev
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/pytest tests/test_lock.py tests/test_dialect.py tests/test_references.py \
		tests/mount/test_wheel.py

lock:
	@scripts/lock $(ARGS)

audit:
	@scripts/audit

# The suite is fetched at a pinned commit, unless the path to its source is given: then nothing is.
conformance: $(VENV)/.dev
	@$(BIN)/python -m tests.conformance $(if $(PJDFSTEST),--suite $(PJDFSTEST)) $(ARGS)
	@NEARLINE_FSX_OPERATIONS=$(FSX) $(BIN)/pytest tests/system/test_fsx.py

bench: $(VENV)/.dev
	@scripts/setup bench
	@$(BIN)/python -m bench $(ARGS)

bench-quick: $(VENV)/.dev
	@scripts/setup bench
	@$(BIN)/python -m bench --quick $(ARGS)

bench-curves: $(VENV)/.dev
	@scripts/setup bench
	@mkdir -p docs/curves
	@$(BIN)/python -m bench.curves --json docs/curves/curves.json --plots docs/curves $(ARGS)

bench-soak: $(VENV)/.dev
	@scripts/setup bench
	@mkdir -p build
	@$(BIN)/python -m bench.soak --minutes $(MINUTES) --json build/soak.json --plot build/soak.png $(ARGS)

bench-hostile: $(VENV)/.dev
	@$(BIN)/python -m bench.hostile $(ARGS)

install-helper: $(VENV)/.server
	@scripts/install-helper

install-units: $(VENV)/.server
	@scripts/install-units
