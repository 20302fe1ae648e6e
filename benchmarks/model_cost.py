"""Count a network's FLOP, parameters and memory without running it.

  python -m benchmarks.model_cost --config=configs/imagenet128.py
      --json=DIR/model_cost.json

The forward pass is lowered and the training step compiled, without any arrays.
A multiplication and an addition are two FLOP. "kept" is what JAX keeps from the
forward for the backward pass, parameters included, before any compiler
optimizes; "peak" is what this machine's compiler plans. XLA:CPU does not
schedule for memory, so remat gains nothing there; it has no fused attention and
computes bfloat16 convolutions in float32. For an accelerator's peak, compile on
one.
"""

import math
import time

from absl import flags
import jax

from benchmarks import machine
from benchmarks import programs
from cfgd import build
from experiments import launcher

_CONFIG = launcher.define_config("imagenet64.py")
_BATCH = flags.DEFINE_integer("batch", 8, "Images of the training step.")
_MEMORY = flags.DEFINE_boolean("memory", True, "Compile the training step.")


def _report_forward(config):
  leaves = jax.tree.leaves(build.param_shapes(config))
  report = {
    "gflop_per_image": build.forward_flop(config) / 1e9,
    "parameters": sum(math.prod(leaf.shape) for leaf in leaves),
    "dtype": config.model.dtype,
  }
  print(
    f"{machine.config_name()}: {report['gflop_per_image']:.1f} GFLOP per image "
    f"forward, {report['parameters']:,} parameters, {report['dtype']}",
    flush=True,
  )
  return report


def _report_step(config, batch):
  """Compile the training step for one device and return its memory."""
  start = time.perf_counter()
  shapes = programs.train_input_shapes(config, batch)
  compiled = build.train_step(config).lower(*shapes).compile()
  seconds = time.perf_counter() - start
  state, other = machine.peak_gib(compiled)
  report = {
    "batch": batch,
    "remat": config.model.remat,
    "arguments_gib": state,
    "besides_gib": other,
    "peak_gib": state + other,
    "compile_seconds": seconds,
    "kept_gib": programs.residual_bytes(config, batch) / machine.GIB,
  }
  print(
    f"  training step, batch {batch}, "
    f"{'with' if config.model.remat else 'without'} remat: kept "
    f"{report['kept_gib']:.2f} GiB, peak {report['peak_gib']:.2f} GiB, of "
    f"which {state:.2f} state (compiled in {seconds:.0f} s)",
    flush=True,
  )
  return report


def main():
  """Print the counts, write JSON."""
  config = _CONFIG.value
  report = machine.environment()
  print(", ".join(f"{key} {value}" for key, value in report.items()))
  report |= _report_forward(config) | {"memory": []}
  for config.model.remat in (False, True) if _MEMORY.value else ():
    report["memory"].append(_report_step(config, _BATCH.value))
  machine.write(report)


if __name__ == "__main__":
  launcher.run(main)
