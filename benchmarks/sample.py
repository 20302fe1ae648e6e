"""Time guided sampling with a config's network and fresh weights.

  python -m benchmarks.sample --config=configs/imagenet64.py --batch=256 --T=16
      --config.model.dtype=bfloat16 --json=DIR/sample.json

Runs sampling's own program: both branches of classifier-free guidance at each
of T noise levels (one branch with --config.sampling.w=0).
"""

import time

from absl import flags
import numpy as np

from benchmarks import machine
from benchmarks import programs
from cfgd import build
from experiments import launcher

_CONFIG = launcher.define_config("imagenet64.py")
_BATCH = flags.DEFINE_integer("batch", None, "Images, over all devices.")
_STEPS = flags.DEFINE_integer("T", 4, "Network evaluations per branch.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed calls, after one untimed.")
_PASSES = flags.DEFINE_enum(
  "passes", None, ["1", "2"], "One of 2B or two of B; default: the platform's."
)
flags.mark_flag_as_required("batch")


def _two_passes():
  if _PASSES.value is None:
    return build.prefers_two_passes()
  return _PASSES.value == "2"


def measure(config, batch_size, num_steps, repeats, two_passes):
  """Compile and time the sampler; returns the report.

  Args:
    config: ConfigDict.
    batch_size: over all devices of this process.
    num_steps: T, network evaluations per branch.
    repeats: timed calls after one untimed one.
    two_passes: see `diffusion.classifier_free_guidance`.
  """
  run, arguments = programs.sampler(
    config, batch_size, num_steps, two_passes=two_passes
  )
  start = time.perf_counter()
  compiled = run.lower(*arguments).compile()
  compile_seconds = time.perf_counter() - start
  _, finite = compiled(*arguments)
  seconds = machine.timed(lambda: compiled(*arguments), repeats)
  per_evaluation = machine.spread(seconds)["median"] / num_steps
  report = machine.environment()
  branches = 1 if config.sampling.w == 0 else 2
  images = branches * batch_size / report["devices"]
  flop = build.forward_flop(config) * images
  return report | {
    "batch_size": batch_size,
    "T": num_steps,
    "w": config.sampling.w,
    "two_passes": two_passes,
    "dtype": config.model.dtype,
    "images_per_second": machine.spread([batch_size / s for s in seconds]),
    "seconds_per_evaluation": per_evaluation,
    "peak_gib": sum(machine.peak_gib(compiled)),
    "compile_seconds": compile_seconds,
    "finite": bool(np.all(finite)),
    **machine.rates(flop, per_evaluation, config.model.dtype),
  }


def main():
  """Measure, print, write JSON."""
  report = measure(
    _CONFIG.value, _BATCH.value, _STEPS.value, _REPEATS.value, _two_passes()
  )
  report |= {"program": "sample", "config": machine.config_name()}
  print(
    f"{machine.config_name()}, {report['dtype']}, batch {_BATCH.value} on "
    f"{report['devices']} x {report['device']}, T={_STEPS.value}, "
    f"w={report['w']:g}, {'two passes' if report['two_passes'] else 'one pass'}"
    f": {report['seconds_per_evaluation']:.3g} s per guided evaluation, "
    f"{report['images_per_second']['median']:.3g} images/s, "
    f"{machine.describe_rates(report)}, peak {report['peak_gib']:.2f} GiB, "
    f"compiled in {report['compile_seconds']:.0f} s, "
    f"finite: {report['finite']}"
  )
  machine.write(report)


if __name__ == "__main__":
  launcher.run(main)
