"""What all benchmarks share: the machine, its peak, and how to time a call."""

import ast
import importlib
import json
import os
import platform
import statistics
import time

import flax
import jax
import jax.numpy as jnp

from cfgd.runtime import xla

xla.set_options()

GIB = 2**30


def environment():
  """Return what the numbers depend on."""
  device = jax.devices()[0]
  return {
    "platform": device.platform,
    "device": device.device_kind,
    "devices": jax.device_count(),
    "cores": len(os.sched_getaffinity(0)),
    "machine": platform.machine(),
    "python": platform.python_version(),
    "jax": jax.__version__,
    "flax": flax.__version__,
  }


def add_config_arguments(parser, default):
  """Add the options of `load_config` to an argparse parser."""
  parser.add_argument("--config", default=default, help="name in configs/")
  parser.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="SECTION.FIELD=VALUE",
    help="override a field of the config; may be repeated",
  )


def load_config(options):
  """Return the config that `add_config_arguments` describes."""
  config = importlib.import_module(f"configs.{options.config}").get_config()
  for override in options.set:
    field, _, text = override.partition("=")
    *sections, name = field.split(".")
    section = config
    for part in sections:
      section = section[part]
    try:
      section[name] = ast.literal_eval(text)
    except (SyntaxError, ValueError):
      section[name] = text  # a string without quotes
  return config


def timed(call, repeats):
  """Return the seconds of each call; its results are waited for."""
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(call())
    seconds.append(time.perf_counter() - start)
  return seconds


def spread(seconds):
  """Return the median and the extremes of some timings."""
  return {
    "median": statistics.median(seconds),
    "min": min(seconds),
    "max": max(seconds),
  }


def matmul_peak(dtype, size, repeats):
  """Measure the FLOP/s of a large square matrix product on one device.

  Args:
    dtype: of the factors, "float32" or "bfloat16".
    size: side of the matrices.
    repeats: products of which the fastest counts.
  """
  keys = jax.random.split(jax.random.key(0))
  a, b = (jax.random.normal(key, (size, size), dtype) for key in keys)
  product = jax.jit(jnp.matmul)
  jax.block_until_ready(product(a, b))
  return 2 * size**3 / min(timed(lambda: product(a, b), repeats))


def peak_gib(compiled):
  """Return (arguments, what the program needs besides) in GiB per device."""
  memory = compiled.memory_analysis()
  # Donated arguments become results: their place is counted once.
  results = memory.output_size_in_bytes - memory.alias_size_in_bytes
  besides = memory.temp_size_in_bytes + results
  return memory.argument_size_in_bytes / GIB, besides / GIB


def write_json(path, report):
  """Write a report where a path is given."""
  if path:
    with open(path, "w") as file:
      json.dump(report, file, indent=2)
      file.write("\n")
