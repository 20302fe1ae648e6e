# Sourced where training runs: what JAX and XLA are told by the environment.
# What is set already stays as it is. docs/launch.md has the table.
# shellcheck shell=bash

# Compiled programs are kept between runs and restarts.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/cfgd/jax}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-1}"

# TensorFlow reads data and events here; it logs errors alone.
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"

# Logs appear line by line also where they go to a file.
export PYTHONUNBUFFERED="${PYTHONUNBUFFERED:-1}"

# Options of XLA and of the TPU's compiler are yours alone: none is set here,
# and an option that a version of XLA does not know ends the process.
[[ -z "${XLA_FLAGS:-}" ]] || export XLA_FLAGS
[[ -z "${LIBTPU_INIT_ARGS:-}" ]] || export LIBTPU_INIT_ARGS
