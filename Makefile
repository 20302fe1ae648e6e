# make demo   the paper's experiment at small scale, on real images, 3 to 6 minutes
# make results   the paper's claims on digits, 25 to 80 minutes: writes
#   docs/results.md
# make results SIZE=cpu   on Fashion-MNIST; SIZE=gpu   on a GPU
# make test   format, lint, tests, 5 to 12 minutes on 2 cores
# make test-all   and the slow ones, as CI runs them
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Compiled programs are kept between runs; nothing else depends on the cache.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.5

# Two virtual devices use two cores better than one device with two threads:
# sampling 1.5 times as fast, training 1.3 times. Without effect on accelerators.
demo results: export XLA_FLAGS ?= --xla_force_host_platform_device_count=2
# Huge pages, on Linux: training 1.5 times as fast.
demo results: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

# digits; or Fashion-MNIST: cpu or gpu, and where the data is.
SIZE ?= digits
FASHION ?= $(or $(addprefix idx:,$(wildcard \
  /usr/share/datasets/fashion-mnist)),tfds:fashion_mnist)
RESULTS = runs/results_$(SIZE)
# Where the page is put: docs/results.md, and docs/results_cpu.md and so on.
PAGE = results$(if $(filter-out digits,$(SIZE)),_$(SIZE))
CLAIMS_digits = configs/sweep_embedded.py:claims
CLAIMS = $(or $(CLAIMS_$(SIZE)),configs/sweep_fashion_mnist.py:$(SIZE) \
  --config.data.source=$(FASHION))

# In the order of tests/conftest.py: the longest files first.
PYTEST = $(BIN)/python -m pytest -q -n 2 --dist=loadscope --no-loadscope-reorder

.PHONY: demo results test test-all test-slow lint format clean

demo: $(VENV)/installed
	$(BIN)/python -m experiments.sweep --config=configs/sweep_embedded.py \
	  --workdir=runs/demo

results: $(VENV)/installed
	$(if $(filter $(SIZE),digits cpu gpu),,\
	  $(error SIZE=$(SIZE): must be digits, cpu or gpu))
	mkdir -p $(RESULTS)
	test -e $(RESULTS)/commit || \
	  { git describe --always --dirty 2>/dev/null || echo unknown; } \
	  > $(RESULTS)/commit
	$(BIN)/python -m experiments.sweep --config=$(CLAIMS) --workdir=$(RESULTS)
	mkdir -p docs/figures/$(PAGE)
	cp $(RESULTS)/figures/*.png docs/figures/$(PAGE)/
	cp $(RESULTS)/results.csv docs/$(PAGE).csv
	sed -e 's#](figures/#](figures/$(PAGE)/#' \
	  -e "s#^Settings and.*#Made by \`make results SIZE=$(SIZE)\` at commit \
	$$(cat $(RESULTS)/commit). Each cell and seed: [$(PAGE).csv]($(PAGE).csv).#" \
	  $(RESULTS)/report.md > docs/$(PAGE).md

test: lint
	$(PYTEST) -m "not slow" tests

test-all: test test-slow

test-slow: $(VENV)/installed $(VENV)/libtpu
	$(PYTEST) -m slow tests

# TPU's compiler, of the version that JAX wants, for the tests that name it.
$(VENV)/libtpu: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --target $@ "$$($(BIN)/python -c 'from importlib import metadata; \
	  print(next(one.split(";")[0] for one in metadata.requires("jax") \
	  if one.startswith("libtpu")))')"

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The stamp appears last: an install that was cut short is taken up again.
$(VENV)/installed: setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; say PYTHON=python3.11"; \
	    exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[test]'
	@touch $@

clean:
	rm -rf .cache .pytest_cache .ruff_cache
