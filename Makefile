# Everything a developer or a new user runs.  `make` alone explains.
SHELL := /bin/bash
# Debian's own interpreter where there is one: the recovery disc carries the same release.
PYTHON ?= $(shell test -x /usr/bin/python3 && echo /usr/bin/python3 || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
SETUP_LOG := $(VENV)/setup.log
PIP := $(BIN)/python -m pip install --disable-pip-version-check
# Making and mounting real disks takes root.
SUDO := $(shell test "$$(id -u)" = 0 || echo sudo --preserve-env=REBUILDKIT_CACHE)
WORKERS ?= 2
DEMO ?= demo
# `make test` runs the same way every time, `make matrix` as a new seed says.
SAME_ORDER := env PYTHONHASHSEED=0
ifndef SEED
SEED := $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
endif

# Programs the product uses on the machine that builds and rehearses discs.
PACKAGES := python3-venv binutils qemu-system-x86 ovmf
# Programs that only the tests and the demonstration use: makers of machines, judges of volumes.
TEST_PACKAGES := acl attr dosfstools e2fsprogs extlinux fatcat fdisk file forensics-samples-ext2 \
	forensics-samples-ext4 forensics-samples-ntfs forensics-samples-vfat gdisk genisoimage \
	gcc grub-common grub-pc-bin libc6-dev libcap2-bin libfsntfs-utils libhivex-bin mmdebstrap mount mtools ntfs-3g \
	openssl p7zip-full sleuthkit syslinux syslinux-common util-linux wimtools xorriso xz-utils zstd
# Peers that the benchmarks run beside us.
BENCH_PACKAGES := borgbackup partclone restic

.PHONY: help setup lock audit demo pictures test check lint types unit vm matrix bench clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## Install Debian packages and the virtual environment

# What apt and pip print is in a file; it is shown when they fail.
$(VENV)/.ready: pyproject.toml requirements.lock Makefile
	@mkdir -p $(VENV)
	@installed=$$(dpkg-query -W -f '$${Package} $${db:Status-Status}\n' $(PACKAGES) $(TEST_PACKAGES) \
		2>/dev/null | awk '$$2=="installed"{n++} END{print n+0}'); \
	missing=$$(($(words $(PACKAGES) $(TEST_PACKAGES)) - installed)); \
	if [ "$$missing" -gt 0 ]; then \
		echo "Installing $$missing Debian packages, see $(SETUP_LOG)"; \
		{ $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install \
		-y -qq --no-install-recommends $(PACKAGES) $(TEST_PACKAGES); } >$(SETUP_LOG) 2>&1 \
		|| { cat $(SETUP_LOG); exit 1; }; fi
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing Python packages, see $(SETUP_LOG)"
	@{ $(PIP) --require-hashes -r requirements.lock \
		&& $(PIP) --no-deps --no-build-isolation -e .; } >>$(SETUP_LOG) 2>&1 \
		|| { cat $(SETUP_LOG); exit 1; }
	@touch $@

lock: ## Choose the newest releases of all Python packages anew: writes requirements.lock
	$(PYTHON) -m venv $(VENV)-lock && $(VENV)-lock/bin/pip install -q uv pip-audit
	$(VENV)-lock/bin/uv pip compile -q --upgrade --universal --python-version 3.11 --extra dev \
		--generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		pyproject.toml -o requirements.lock

audit: lock ## Ask PyPI which of them are known to be vulnerable; needs its advisories
	$(VENV)-lock/bin/pip-audit --strict --require-hashes --disable-pip -r requirements.lock

demo: setup ## Lose a small Debian machine and get it back from its disc, in QEMU
	$(SUDO) $(BIN)/python -m tests.vm.demo $(DEMO)

pictures: demo ## The demonstration, and from its screenshots the pictures of the README
	$(BIN)/python -m tests.vm.pictures $(DEMO)/screenshots docs/pictures

test: setup check ## Set everything up, then run the checks and tests that CI runs

check: lint types unit vm ## Linters, types and tests; what CI runs

lint: setup ## Linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell backup docs fsdrivers imagebuilder rebuild templates tests vm *.md

types: setup ## Strict type check
	$(BIN)/mypy

# With AREA=fsdrivers/fat only the tests below tests/fsdrivers/fat, as root only if some need it.
unit: setup ## Tests that start no virtual machine; AREA=fsdrivers/fat for those of one folder
	$(if $(AREA),$(if $(shell grep -rl 'mark\.root' tests/$(AREA)),$(SUDO)),$(SUDO)) $(SAME_ORDER) \
		$(BIN)/pytest -q -n $(WORKERS) -m 'not vm and not slow' tests/$(AREA)

vm: setup ## Tests in virtual machines: the main job, end to end
	$(SUDO) $(SAME_ORDER) $(BIN)/pytest -q -n $(WORKERS) --dist loadscope -m 'vm and not slow'

matrix: setup ## The slow ones: more firmware, disks, media, filesystems and random trees; hours
	@echo "Drawn at random; the same once more: make matrix SEED=$(SEED)"
	$(SUDO) env PYTHONHASHSEED=$(SEED) $(BIN)/pytest -q -n $(WORKERS) --dist loadscope -m slow \
		--hypothesis-profile=drawn --hypothesis-seed=$(SEED)

bench: setup ## Measure against the peers, side by side
	$(SUDO) apt-get install -y -qq --no-install-recommends $(BENCH_PACKAGES)
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench fs

clean: ## Remove what was built here
	rm -rf $(VENV) $(VENV)-lock $(DEMO) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
