"""Time the training step of a config on random images.

  python -m benchmarks.train_step --config=imagenet64 --batch=128
      --set model.dtype=bfloat16 --json=DIR/train_step.json

The step is training's own, on all devices of this process; FLOP are XLA's count
of it, the peak is that of a large matrix product measured here in the same
dtype. Memory is what the compiler plans, beside what shapes alone say: state
(parameters, their average, Adam's moments), gradients, and what JAX hands from
the forward to the backward pass before any compiler has seen it. A state that
is donated whole is aliased whole.
"""

import argparse
import math
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from cfgd import config as config_lib
from cfgd import networks
from cfgd.runtime import distributed
from cfgd.training import state as state_lib
from cfgd.training import steps
from cfgd.training import tasks


def make_step(config):
  """Return the pmapped training step of a config."""
  return steps.make_train_step(
    tasks.TASKS[config.task].loss(config, networks.build(config)),
    state_lib.make_optimizer(**config_lib.adam_arguments(config)),
    seed=config.seed,
    ema_decay=config.optim.ema_decay,
    ema_warmup=config.optim.ema_warmup,
    microbatches=config.train.microbatches,
  )


def make_state(config):
  """Return a fresh train state on all devices."""
  return distributed.replicate(
    state_lib.create(
      networks.initial_params(config),
      state_lib.make_optimizer(**config_lib.adam_arguments(config)),
    )
  )


def make_batch(config, batch_size):
  """Return random images and labels, split over the devices."""
  rng = np.random.default_rng(0)
  shape = (batch_size, *config_lib.image_shape(config))
  batch = {
    "image": rng.integers(0, 256, shape, dtype=np.uint8),
    "label": rng.integers(config.data.num_classes, size=batch_size).astype(
      np.int32
    ),
    "row": np.arange(batch_size, dtype=np.int32),
  }
  return distributed.split(batch, jax.local_device_count())


def _bytes(tree):
  return sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def kept(config, batch):
  """Return the bytes that the forward pass leaves for the backward pass.

  Parameters are among them, dropout's masks are not. With model.remat it is
  what that keeps.
  """
  network = networks.build(config)
  shape = (batch, *config_lib.image_shape(config))

  def backward(params, z, time, label):
    return jax.vjp(
      lambda params: network.apply({"params": params}, z, time, label), params
    )[1]

  return _bytes(
    jax.eval_shape(
      backward,
      networks.param_shapes(config),
      jax.ShapeDtypeStruct(shape, jnp.float32),
      jax.ShapeDtypeStruct((batch,), jnp.float32),
      jax.ShapeDtypeStruct((batch,), jnp.int32),
    )
  )


def memory(config, compiled, state, batch):
  """Return the memory of a compiled step on a device, planned and counted.

  Args:
    config: ConfigDict.
    compiled: of `make_step`.
    state: TrainState that it takes.
    batch: images on the device.
  """
  arguments, besides = machine.peak_gib(compiled)
  parameters = _bytes(state.params)
  counted = {
    "state": _bytes(state),
    "gradients": parameters,
    "activations": kept(config, batch) - parameters,
  }
  total = sum(counted.values()) / machine.GIB
  aliased = compiled.memory_analysis().alias_size_in_bytes
  return {
    "state_gib": arguments,
    "peak_gib": arguments + besides,
    "counted_bytes": counted,
    "counted_gib": total,
    "peak_over_counted": (arguments + besides) / total,
    "donated_bytes": aliased,
    "state_is_donated": aliased == counted["state"],
  }


def measure(config, batch_size, repeats):
  """Compile and time the step.

  Args:
    config: ConfigDict.
    batch_size: over all devices.
    repeats: timed steps after one untimed one.

  Returns:
    Dict of images and FLOP per second, memory, seconds and the losses.
  """
  state, batch = make_state(config), make_batch(config, batch_size)
  traced = {"p_uncond": jnp.float32(config.diffusion.p_uncond)}
  start = time.perf_counter()
  lowered = make_step(config).lower(state, batch, traced)
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
  rate = machine.spread([batch_size / s for s in seconds])
  work = networks.flop(lowered)
  return used | {
    "batch_size": batch_size,
    "dtype": config.model.dtype,
    "remat": config.model.remat,
    "images_per_second": rate,
    "step_seconds": machine.spread(seconds),
    "flop_per_step_and_device": work,
    "flop_per_second_and_device": work / machine.spread(seconds)["median"],
    "compile_seconds": compile_seconds,
    "losses": [float(loss) for loss in losses],
    "skipped": int(state.skipped),
  }


def main(argv):
  """Measure, print, write JSON."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  machine.add_config_arguments(parser, "imagenet64")
  parser.add_argument("--batch", type=int, required=True)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--matmul", type=int, default=4096, help="side, of peak")
  parser.add_argument("--json", help="file to write")
  options = parser.parse_args(argv)
  config = machine.load_config(options)
  report = machine.environment() | measure(
    config, options.batch, options.repeats
  )
  peak = machine.matmul_peak(config.model.dtype, options.matmul, 5)
  report["matmul_flop_per_second"] = peak
  fraction = report["flop_per_second_and_device"] / peak
  report["fraction_of_matmul_peak"] = fraction
  print(
    f"{options.config}, {report['dtype']}, batch {options.batch} on "
    f"{report['devices']} x {report['device']}: "
    f"{report['images_per_second']['median']:.3g} images/s, "
    f"{report['step_seconds']['median']:.3g} s per step, "
    f"{report['flop_per_second_and_device'] / 1e12:.3g} TFLOP/s = "
    f"{fraction:.0%} of matmul, peak {report['peak_gib']:.2f} GiB (state "
    f"{report['state_gib']:.2f}) = {report['peak_over_counted']:.2f} of "
    f"{report['counted_gib']:.2f} counted, state donated: "
    f"{report['state_is_donated']}, compiled in "
    f"{report['compile_seconds']:.0f} s, losses "
    f"{', '.join(f'{loss:.4f}' for loss in report['losses'])}"
  )
  machine.write_json(options.json, report)


if __name__ == "__main__":
  main(sys.argv[1:])
