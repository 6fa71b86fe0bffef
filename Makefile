# make demo | test | bench | check: each sets up what it needs, in $(VENV), and only what changed.
# A machine needs python3 (>= 3.10, with venv), a C++17 compiler and make; the rest comes from pip.

PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
# Besides the newest, which is in $(VENV). Those before 1.19 need numpy 1.
ORT_VERSIONS ?= 1.17 1.20 1.24
# Whether its training release has a wheel for this Python and machine.
TRAINS := $(shell $(PYTHON) -c 'import platform, sys; print("yes" if sys.version_info < (3, 13) \
  and (sys.platform == "darwin" or platform.machine() == "x86_64") else "")')
# What bench-commits compares: a range, as git takes it.
COMMITS ?= HEAD~1..HEAD
JOBS := $(shell $(PYTHON) -c 'import os; print(os.cpu_count())')

.DELETE_ON_ERROR:
.PHONY: help demo test test-matrix test-ort-training bench bench-full bench-commits bench-training check sanitize fuzz accuracy limits soak kills allocations reliability build generated tidy format dist wheels constraints artifacts bare pythons clean

help:
	@echo 'make demo    train on partly wrong data with this loss: a table, pictures (DEMO_ARGS="--task text")'
	@echo 'make test    the test suite (PYTEST_ARGS="-k name" selects)'
	@echo 'make test-matrix  the ONNX operator with onnxruntime $(ORT_VERSIONS) and the newest'
	@echo 'make bench   the benchmarks, in minutes (BENCH_ARGS="..." is passed on); results go to docs/'
	@echo 'make bench-full  every case with each number of threads and allocator: half an hour'
	@echo 'make bench-commits  the same cases over commits, by asv (COMMITS="$(COMMITS)")'
	@echo 'make bench-training  a training step on both runtimes and in PyTorch'
	@echo 'make check   formatters, linters, type checkers, the typed stub'
	@echo 'make sanitize  tests of the native code under sanitizers (SANITIZE_ARGS="thread")'
	@echo 'make accuracy  every instruction set against 50 digits'
	@echo 'make limits  arrays, processes and hosts of every kind: those tests, counted'
	@echo 'make soak    mixed calls and training, results and memory checked: an hour (SOAK_MINUTES=1)'
	@echo 'make kills   trainings killed at random moments: minutes (KILLS=10)'
	@echo 'make allocations  each allocation of a call made to fail, once: a minute'
	@echo 'make reliability  the table of RELIABILITY.md, from the last records of such checks'
	@echo 'make fuzz    each fuzzer for FUZZ_SECONDS=$(FUZZ_SECONDS), from its kept corpus (FUZZ_ARGS="--keep")'
	@echo 'make format  rewrite files as the formatters want them'
	@echo 'make build   compile what changed, in place'
	@echo 'make generated  rewrite what follows from gce.h and the table of options'
	@echo 'make dist    sdist and wheel, in dist/'
	@echo 'make wheels  sdist and repaired wheels for the Pythons of this machine (WHEEL_PYTHONS="python3.12")'
	@echo 'make artifacts  look into what make wheels made; make bare: install it where nothing is (root)'
	@echo 'make pythons  try those wheels on their Pythons (WHEEL_PYTHONS="--also python3.13t" for both)'
	@echo 'make clean   remove builds and environments'

demo: $(VENV)/.demo $(VENV)/.native
	$(BIN)/python -m gce demo $(DEMO_ARGS)

# All tests, a part on each CPU; then, unless PYTEST_ARGS selects, those of the ONNX operator once more with an
# old runtime, and with its training release, beside those that need it.
test: $(VENV)/.test $(VENV)/.native
	$(BIN)/python -m pytest $(or $(PYTEST_ARGS),-n auto --dist loadgroup)
	$(if $(PYTEST_ARGS),,$(MAKE) --no-print-directory test-onnxruntime-$(firstword $(ORT_VERSIONS)))
	$(if $(PYTEST_ARGS),,$(MAKE) --no-print-directory test-ort-training)

# The operator's tests with each runtime in an environment of its own.
test-matrix: $(VENV)/.test $(VENV)/.native
	$(BIN)/python -m pytest tests/onnx_ops $(PYTEST_ARGS)
	for version in $(ORT_VERSIONS); do \
	  $(MAKE) --no-print-directory test-onnxruntime-$$version || exit; done
	$(MAKE) --no-print-directory test-ort-training TRAINING_TESTS=tests/onnx_ops

test-onnxruntime-%: $(VENV)-onnxruntime-%/.ready $(VENV)/.native
	$(VENV)-onnxruntime-$*/bin/python -m pytest tests/onnx_ops $(PYTEST_ARGS)

# With ONNX Runtime's training release: of the operator's tests what it may change; test-matrix has them all.
TRAINING_TESTS := tests/ort_training $(patsubst %,tests/onnx_ops/test_%.py,op op_limits malformed)
ifneq ($(TRAINS),)
test-ort-training: $(VENV)-ort-training/.ready $(VENV)/.native
	GCE_STOCK_PYTHON='$(abspath $(BIN)/python)' \
	  $(VENV)-ort-training/bin/python -m pytest $(TRAINING_TESTS) $(PYTEST_ARGS)
else
test-ort-training:
	@echo 'SKIPPED $(TRAINING_TESTS): the training release of onnxruntime has no wheel for this Python' \
	  'and machine, only for Python 3.12 and older on x86-64 Linux and macOS'
endif

# With the training release, where there is one.
BENCH_NEEDS := $(VENV)/.bench $(VENV)/.native $(if $(TRAINS),$(VENV)-ort-training/.ready)
TRAINING_PYTHON := $(if $(TRAINS),--training-python '$(abspath $(VENV))-ort-training/bin/python')

bench: $(BENCH_NEEDS)
	$(BIN)/python -m benchmarks $(TRAINING_PYTHON) $(BENCH_ARGS)

bench-full: $(BENCH_NEEDS)
	$(BIN)/python -m benchmarks --full $(TRAINING_PYTHON) $(BENCH_ARGS)

bench-training: $(BENCH_NEEDS)
	$(BIN)/python -m benchmarks.training $(TRAINING_PYTHON) $(BENCH_ARGS)

# The commit before the range, those in it, and how first and last differ. Kept in build/asv.
ASV := $(BIN)/asv --config benchmarks/commits/asv.conf.json
bench-commits: $(VENV)/.bench
	$(ASV) machine --yes
	first=$$(git rev-parse '$(firstword $(subst .., ,$(COMMITS)))') && \
	last=$$(git rev-parse '$(lastword $(subst .., ,$(COMMITS)))') && \
	$(ASV) run --skip-existing-successful $(BENCH_ARGS) "$$first^!" && \
	$(ASV) run --skip-existing-successful $(BENCH_ARGS) "$$first..$$last" && \
	$(ASV) compare "$$first" "$$last"

# Builds of their own, in build/sanitize.
sanitize: $(VENV)/.test $(VENV)/.native $(if $(TRAINS),$(VENV)-ort-training/.ready)
	$(BIN)/python -m reliability sanitize $(TRAINING_PYTHON) $(SANITIZE_ARGS)

# Every ISA against 50 digits.
accuracy: $(VENV)/.test $(VENV)/.native
	$(BIN)/python -m reliability accuracy

# The tests that go to the limits, counted.
limits: $(VENV)/.test $(VENV)/.native
	$(BIN)/python -m reliability limits

allocations: $(VENV)/.test $(VENV)/.native
	$(BIN)/python -m reliability allocations

# The table of RELIABILITY.md, from what the checks have recorded.
reliability: $(VENV)/.test $(VENV)/.native
	$(BIN)/python -m reliability report

# On both runtimes, where there is the training release; RELIABILITY_ARGS="--output DIR" and the like.
SOAK_MINUTES ?= 60
KILLS ?= 200
RELIABILITY_NEEDS := $(VENV)/.test $(VENV)/.native $(if $(TRAINS),$(VENV)-ort-training/.ready)
soak: $(RELIABILITY_NEEDS)
	$(BIN)/python -m reliability soak --minutes $(SOAK_MINUTES) $(TRAINING_PYTHON) $(RELIABILITY_ARGS)

kills: $(RELIABILITY_NEEDS)
	$(BIN)/python -m reliability kills --kills $(KILLS) $(TRAINING_PYTHON) $(RELIABILITY_ARGS)

# Each target for so long, from its kept corpus. One finding ends its target's run, and make.
FUZZ_SECONDS ?= 600
fuzz: $(VENV)/.test $(VENV)/.fuzz $(VENV)/.native
	$(BIN)/python -m reliability fuzz_c_abi --seconds $(FUZZ_SECONDS) $(FUZZ_ARGS)
	$(BIN)/python -m reliability fuzz_python --seconds $(FUZZ_SECONDS) $(FUZZ_ARGS)
	$(BIN)/python -m reliability fuzz_onnx --seconds $(FUZZ_SECONDS) $(FUZZ_ARGS)

build: $(VENV)/.native

# The second needs a build with what the first wrote.
generated:
	$(PYTHON) native/tools/cython_pxd.py
	$(MAKE) --no-print-directory build
	$(BIN)/python native/tools/options_table.py

# Exact versions of what a build requires, in the environments that python -m build makes.
PINNED := PIP_CONSTRAINT='$(abspath .ci/build-constraints.txt)' \
  PIP_BUILD_CONSTRAINT='$(abspath .ci/build-constraints.txt)'

dist: $(VENV)/.dev
	$(PINNED) $(BIN)/python -m build

wheels: $(VENV)/.wheels
	$(BIN)/python -m reliability.wheels $(WHEEL_PYTHONS)

artifacts: $(VENV)/.wheels
	$(BIN)/python -m reliability artifacts $(ARTIFACTS_ARGS)

bare: $(VENV)/.wheels $(VENV)/.test
	$(BIN)/python -m reliability bare $(BARE_ARGS)

pythons: $(VENV)/.wheels
	$(BIN)/python -m reliability pythons $(WHEEL_PYTHONS)

# The newest versions that the ranges allow, with the hashes of their files; the comment stays. Of numpy the last one
# that has wheels for free-threaded 3.13: pip makes none while it looks for hashes.
constraints: $(VENV)/.wheels
	@mkdir -p build
	grep '^#' .ci/build-constraints.txt >build/constraints.txt
	echo "numpy<2.5 ; python_full_version < '3.14'" >build/older.txt
	UV_PYTHON_DOWNLOADS=never $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --upgrade \
	  --constraints build/older.txt \
	  --generate-hashes --no-header --no-annotate --group build >>build/constraints.txt
	mv build/constraints.txt .ci/build-constraints.txt

clean:
	rm -rf $(VENV) $(VENV)-onnxruntime-* $(VENV)-ort-training build dist *.egg-info gce/*.so gce/jax/*.so gce/onnx/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- environment: one stamp file for each set of packages ---------------------------------------
# The order-only prerequisites (after |) form a chain, so that no two pips run at once under -j.

NATIVE := $(shell find native onnx_ops xla_ffi -name '*.h' -o -name '*.cpp') setup.py pyproject.toml

$(VENV)/.pip:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.build: pyproject.toml | $(VENV)/.pip
	$(PIP) install --upgrade --group build
	@touch $@

# Editable and without build isolation: objects stay in build/, and only what changed is compiled.
$(VENV)/.native: $(NATIVE) | $(VENV)/.build
	$(PIP) install --no-build-isolation --editable .
	@touch $@

$(VENV)/.demo: pyproject.toml | $(VENV)/.native
	$(PIP) install --no-build-isolation --editable '.[demo]' 'onnxruntime>=1.23'
	@touch $@

$(VENV)/.test $(VENV)/.dev $(VENV)/.wheels $(VENV)/.bench $(VENV)/.fuzz: $(VENV)/.%: pyproject.toml | $(VENV)/.demo
	$(PIP) install --group $*
	@touch $@

# Another onnxruntime, with the package as it is built in place.
.PRECIOUS: $(VENV)-onnxruntime-%/.ready
$(VENV)-onnxruntime-%/.ready: pyproject.toml | $(VENV)/.pip
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check -qq install --upgrade 'pip>=25.1'
	$(@D)/bin/python -m pip --disable-pip-version-check -qq install --group operator \
	  'onnxruntime==$*.*' $(if $(filter 1.17 1.18,$*),'numpy<2','numpy>=2')
	@touch $@

$(VENV)-ort-training/.ready: pyproject.toml | $(VENV)/.pip
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check -qq install --upgrade 'pip>=25.1'
	$(@D)/bin/python -m pip --disable-pip-version-check -qq install --group ort-training
	@touch $@

# --- checks -------------------------------------------------------------------------------------

CPP := $(shell find native onnx_ops xla_ffi tests reliability -name '*.h' -o -name '*.cpp' -o -name '*.c')

# Tests pass wrong arguments on purpose, and keep options of all types in dicts.
LOOSE := --config-file= --ignore-missing-imports --check-untyped-defs \
  --disable-error-code=arg-type --disable-error-code=call-arg --disable-error-code=call-overload \
  --disable-error-code=index --disable-error-code=misc --disable-error-code=operator

check: $(VENV)/.dev $(VENV)/.native
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy $(LOOSE) $(wildcard tests benchmarks reliability examples)
	$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml gce._native
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/pre-commit validate-config
	@$(MAKE) --no-print-directory -j$(JOBS) tidy

# A stamp for each file that this machine compiles (the build listed them): only what changed is
# analysed again. Headers are covered through the files that include them.
COMPILED = $(filter $(CPP),$(shell grep -soE '(native|onnx_ops|xla_ffi)/[^"]*\.cpp' build/compile_commands.json))
tidy: $(patsubst %,build/tidy/%.ok,$(sort $(COMPILED)))
build/tidy/%.ok: % .clang-tidy $(NATIVE)
	$(BIN)/clang-tidy --quiet -p build $<
	@mkdir -p $(@D) && touch $@

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CPP)
