"""Time guided sampling with a config's network and fresh weights.

  python -m benchmarks.sample --config=imagenet64 --batch=256 --T=16
      --set model.dtype=bfloat16 --json=DIR/sample.json

The sampler is sampling's own: both branches of classifier-free guidance at each
of T noise levels (w=0 in the config leaves one).
"""

import argparse
import sys
import time

import numpy as np

from benchmarks import machine
from cfgd import networks
from cfgd.runtime import distributed
from cfgd.sampling import configured
from cfgd.sampling import sampler as sampler_lib


def make_call(config, batch_size, num_steps, two_passes):
  """Return (pmapped sampler, its arguments) for random weights.

  The last layer of a fresh network is zero; that changes no timing.
  """
  config = config.copy_and_resolve_references()
  config.sampling.T = num_steps
  params = networks.initial_params(config), None
  index = np.arange(batch_size)
  arguments = configured.arguments(
    config,
    distributed.replicate_locally(params),
    index,
    (index % config.data.num_classes).astype(np.int32),
  )
  run = configured.make_sampler(config, two_passes=two_passes)
  return run, arguments


def measure(config, batch_size, num_steps, repeats, two_passes):
  """Compile and time the sampler.

  Args:
    config: ConfigDict.
    batch_size: over all devices of this process.
    num_steps: T, network evaluations per branch.
    repeats: timed calls after one untimed one.
    two_passes: see `diffusion.classifier_free_guidance`.

  Returns:
    Dict of images per second, seconds per evaluation, and memory.
  """
  run, arguments = make_call(config, batch_size, num_steps, two_passes)
  start = time.perf_counter()
  compiled = run.lower(*arguments).compile()
  compile_seconds = time.perf_counter() - start
  held, besides = machine.peak_gib(compiled)
  _, finite = compiled(*arguments)
  seconds = machine.timed(lambda: compiled(*arguments), repeats)
  median = machine.spread(seconds)["median"]
  return {
    "batch_size": batch_size,
    "T": num_steps,
    "w": config.sampling.w,
    "two_passes": two_passes,
    "dtype": config.model.dtype,
    "images_per_second": machine.spread([batch_size / s for s in seconds]),
    "seconds_per_evaluation": median / num_steps,
    "peak_gib": held + besides,
    "compile_seconds": compile_seconds,
    "finite": bool(np.all(finite)),
  }


def main(argv):
  """Measure, print, write JSON."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  machine.add_config_arguments(parser, "imagenet64")
  parser.add_argument("--batch", type=int, required=True)
  parser.add_argument("--T", type=int, default=4)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument(
    "--passes",
    type=int,
    choices=(1, 2),
    help="one of 2B or two of B; by default what the platform prefers",
  )
  parser.add_argument("--matmul", type=int, default=4096, help="side, of peak")
  parser.add_argument("--json", help="file to write")
  options = parser.parse_args(argv)
  config = machine.load_config(options)
  two_passes = (
    options.passes == 2 if options.passes else sampler_lib.prefers_two_passes()
  )
  report = machine.environment() | measure(
    config, options.batch, options.T, options.repeats, two_passes
  )
  branches = 1 if config.sampling.w == 0 else 2
  work = (
    networks.forward_flop(config) * branches * options.batch / report["devices"]
  )
  rate = work / report["seconds_per_evaluation"]
  peak = machine.matmul_peak(config.model.dtype, options.matmul, 5)
  report |= {
    "flop_per_second_and_device": rate,
    "matmul_flop_per_second": peak,
    "fraction_of_matmul_peak": rate / peak,
  }
  print(
    f"{options.config}, {report['dtype']}, batch {options.batch} on "
    f"{report['devices']} x {report['device']}, T={options.T}, "
    f"w={report['w']:g}, {'two passes' if two_passes else 'one pass'}: "
    f"{report['seconds_per_evaluation']:.3g} s per guided evaluation, "
    f"{report['images_per_second']['median']:.3g} images/s, "
    f"{rate / 1e12:.3g} TFLOP/s = {rate / peak:.0%} of matmul, peak "
    f"{report['peak_gib']:.2f} GiB, compiled in "
    f"{report['compile_seconds']:.0f} s, finite: {report['finite']}"
  )
  machine.write_json(options.json, report)


if __name__ == "__main__":
  main(sys.argv[1:])
