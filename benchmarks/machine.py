"""What the benchmarks share: the machine, timing, rates and the report."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time

from absl import flags
import flax
import jax
import jax.numpy as jnp
from ml_collections import config_flags

GIB = 2**30
_PEAK_REPEATS = 5

_JSON = flags.DEFINE_string("json", None, "File to write the report to.")
_MATMUL = flags.DEFINE_integer(
  "matmul", 4096, "Side of the matrices whose product measures the peak."
)


def environment(*packages):
  """Return what the numbers depend on, with the versions of some packages."""
  device = jax.devices()[0]
  versions = {"jax": jax.__version__, "flax": flax.__version__}
  for package in packages:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[package] = importlib.metadata.version(package)
  return {
    "platform": device.platform,
    "device": device.device_kind,
    "devices": jax.device_count(),
    "cores": cores(),
    "machine": platform.machine(),
    "python": platform.python_version(),
    "load": os.getloadavg()[0],
    **versions,
  }


def cores():
  """Return how many cores this process may use, as far as the system says."""
  if hasattr(os, "sched_getaffinity"):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def config_name():
  """Return the name of the --config file, such as "imagenet64"."""
  path = config_flags.get_config_filename(flags.FLAGS["config"])
  return pathlib.Path(path).stem


def timed(call, repeats):
  """Return the seconds of each call, results included."""
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(call())
    seconds.append(time.perf_counter() - start)
  return seconds


@dataclasses.dataclass
class Timing:
  """The result of a first, untimed call, and the times of those after it."""

  result: object
  seconds: list
  cpu_seconds: list


def in_turns(calls, repeats):
  """Time functions in turn; returns {name: Timing}."""
  timings = {
    name: Timing(jax.block_until_ready(call()), [], [])
    for name, call in calls.items()
  }
  for _ in range(repeats):
    for name, call in calls.items():
      start = time.process_time()
      timings[name].seconds += timed(call, 1)
      timings[name].cpu_seconds.append(time.process_time() - start)
  return timings


def spread(values):
  """Return the median and the extremes of some measurements."""
  return {
    "median": statistics.median(values),
    "min": min(values),
    "max": max(values),
  }


def rates(flop, seconds, dtype):
  """Return FLOP/s of a device, also as a fraction of a matrix product's."""
  peak = _matmul_peak(dtype)
  return {
    "flop_per_second_and_device": flop / seconds,
    "matmul_flop_per_second": peak,
    "fraction_of_matmul_peak": flop / seconds / peak,
  }


def describe_rates(report):
  """Return the `rates` in a report as text."""
  return (
    f"{report['flop_per_second_and_device'] / 1e12:.3g} TFLOP/s = "
    f"{report['fraction_of_matmul_peak']:.0%} of matmul"
  )


def _matmul_peak(dtype):
  """Measure the FLOP/s of a large square matrix product on one device."""
  size = _MATMUL.value
  keys = jax.random.split(jax.random.key(0))
  a, b = (jax.random.normal(key, (size, size), dtype) for key in keys)
  product = jax.jit(jnp.matmul)
  jax.block_until_ready(product(a, b))
  return 2 * size**3 / min(timed(lambda: product(a, b), _PEAK_REPEATS))


def peak_gib(compiled):
  """Return (arguments, everything else) of a program in GiB per device."""
  memory = compiled.memory_analysis()
  # Donated arguments become results and are counted once.
  results = memory.output_size_in_bytes - memory.alias_size_in_bytes
  other = memory.temp_size_in_bytes + results
  return memory.argument_size_in_bytes / GIB, other / GIB


def write(report):
  """Write a report to --json, if given."""
  if _JSON.value:
    text = json.dumps(report, indent=2)
    pathlib.Path(_JSON.value).write_text(text + "\n")
