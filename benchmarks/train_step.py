"""Time the training step of a config on random images.

  python -m benchmarks.train_step --config=configs/imagenet64.py --batch=128
      --config.model.dtype=bfloat16 --json=DIR/train_step.json

Runs training's own step on all devices of this process. FLOP are XLA's count;
the peak is that of a large matrix product of the same dtype, measured here.
Memory is what the compiler plans, beside a count by shapes: state (parameters,
their average, Adam's moments), gradients, and what JAX keeps from the forward
for the backward pass before any compiler optimizes. The state is donated if all
of its bytes are aliased.
"""

import time

from absl import flags
import jax

from benchmarks import machine
from benchmarks import programs
from cfgd import build
from experiments import launcher

_CONFIG = launcher.define_config("imagenet64.py")
_BATCH = flags.DEFINE_integer("batch", None, "Images, over all devices.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed steps, after one untimed.")
flags.mark_flag_as_required("batch")


def memory(config, compiled, state, batch):
  """Return the memory of a compiled step on a device, planned and counted.

  Args:
    config: ConfigDict.
    compiled: the step.
    state: its TrainState.
    batch: images per device.
  """
  arguments, other = machine.peak_gib(compiled)
  parameters = programs.num_bytes(state.params)
  counted = {
    "state": programs.num_bytes(state),
    "gradients": parameters,
    "activations": programs.residual_bytes(config, batch) - parameters,
  }
  total = sum(counted.values()) / machine.GIB
  aliased = compiled.memory_analysis().alias_size_in_bytes
  return {
    "state_gib": arguments,
    "peak_gib": arguments + other,
    "counted_bytes": counted,
    "counted_gib": total,
    "peak_over_counted": (arguments + other) / total,
    "donated_bytes": aliased,
    "state_is_donated": aliased == counted["state"],
  }


def measure(config, batch_size, repeats):
  """Compile and time the step; returns the report."""
  state, batch, traced = programs.train_inputs(config, batch_size)
  start = time.perf_counter()
  lowered = build.train_step(config).lower(state, batch, traced)
  compiled = lowered.compile()
  compile_seconds = time.perf_counter() - start
  used = memory(config, compiled, state, batch_size // jax.device_count())
  losses = []

  def step():
    nonlocal state
    state, metrics = compiled(state, batch, traced)
    losses.append(metrics["loss"])
    return metrics

  machine.timed(step, 1)
  seconds = machine.timed(step, repeats)
  median = machine.spread(seconds)["median"]
  flop = build.flop(lowered)
  return used | {
    "batch_size": batch_size,
    "dtype": config.model.dtype,
    "remat": config.model.remat,
    "images_per_second": machine.spread([batch_size / s for s in seconds]),
    "step_seconds": machine.spread(seconds),
    "flop_per_step_and_device": flop,
    "compile_seconds": compile_seconds,
    "losses": [float(loss) for loss in losses],
    "skipped": int(state.skipped),
    **machine.rates(flop, median, config.model.dtype),
  }


def main():
  """Measure, print, write JSON."""
  report = machine.environment() | measure(
    _CONFIG.value, _BATCH.value, _REPEATS.value
  )
  report |= {"program": "train_step", "config": machine.config_name()}
  print(
    f"{machine.config_name()}, {report['dtype']}, batch {_BATCH.value} on "
    f"{report['devices']} x {report['device']}: "
    f"{report['images_per_second']['median']:.3g} images/s, "
    f"{report['step_seconds']['median']:.3g} s per step, "
    f"{machine.describe_rates(report)}, peak {report['peak_gib']:.2f} GiB "
    f"(state {report['state_gib']:.2f}) = {report['peak_over_counted']:.2f} of "
    f"{report['counted_gib']:.2f} counted, state donated: "
    f"{report['state_is_donated']}, compiled in "
    f"{report['compile_seconds']:.0f} s, losses "
    f"{', '.join(f'{loss:.4f}' for loss in report['losses'])}"
  )
  machine.write(report)


if __name__ == "__main__":
  launcher.run(main)
