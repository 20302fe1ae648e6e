# Environment of JAX and XLA, sourced before training.
# Variables that are set already are kept. docs/launch.md has the table.
# shellcheck shell=bash

# Compiled programs are kept between runs and restarts.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/cfgd/jax}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-1}"

# TensorFlow only reads data and writes events; let it log errors alone.
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"

# Write logs line by line, to files too.
export PYTHONUNBUFFERED="${PYTHONUNBUFFERED:-1}"

# No options of XLA or of the TPU compiler are set here, only yours exported: an
# option that a version of XLA does not know ends the process.
[[ -z "${XLA_FLAGS:-}" ]] || export XLA_FLAGS
[[ -z "${LIBTPU_INIT_ARGS:-}" ]] || export LIBTPU_INIT_ARGS
