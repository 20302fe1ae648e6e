# make demo   the paper's experiment in small, on real images
# make test   format, lint, tests, at most 6 minutes on 2 cores
# make test-all   and the slow ones, as CI runs them
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Compiled programs are kept between runs; nothing else depends on the cache.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.5

# Two virtual devices use two cores better than one device with two threads:
# sampling 1.5 times as fast, training 1.3 times. Without effect on accelerators.
demo: export XLA_FLAGS ?= --xla_force_host_platform_device_count=2

.PHONY: demo test test-all test-slow lint format clean

demo: $(VENV)/installed
	$(BIN)/python -m experiments.sweep --config=configs/sweep_embedded.py \
	  --workdir=runs/demo

test: lint
	$(BIN)/python -m pytest -q -n 2 --dist=loadscope -m "not slow" tests

test-all: test test-slow

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -q -n 2 --dist=loadscope -m slow tests

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
