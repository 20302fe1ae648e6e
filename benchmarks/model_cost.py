"""What the paper's networks cost: work, parameters and memory, by XLA's count.

  python -m benchmarks.model_cost --json=DIR/model_cost.json

Nothing is run and no weights are made: the forward pass is lowered, the
training step compiled. A multiplication and an addition are two FLOP. "kept" is
what JAX hands from the forward to the backward pass, parameters included,
before any compiler has seen it. "peak" is what this machine's compiler plans.
The CPU's keeps no order that saves memory and so gains nothing by remat, has no
fused attention and computes bfloat16 convolutions in float32: an accelerator's
peak has to be asked of one.
"""

import argparse
import importlib
import math
import sys
import time

import jax
import jax.numpy as jnp

from benchmarks import machine
from benchmarks import train_step
from cfgd import config as config_lib
from cfgd import networks
from cfgd.training import state as state_lib


def forward_cost(config):
  """Return the FLOP of one image's forward pass and the parameter count."""
  leaves = jax.tree.leaves(networks.param_shapes(config))
  return {
    "gflop_per_image": networks.forward_flop(config) / 1e9,
    "parameters": sum(math.prod(leaf.shape) for leaf in leaves),
  }


def _lower_step(config, batch):
  """Lower training's own step for one device, without any arrays."""
  optimizer = state_lib.make_optimizer(**config_lib.adam_arguments(config))
  state = jax.eval_shape(
    lambda params: state_lib.create(params, optimizer),
    networks.param_shapes(config),
  )
  shape = (1, batch, *config_lib.image_shape(config))  # devices first
  rows = jax.ShapeDtypeStruct((1, batch), jnp.int32)
  inputs = {
    "image": jax.ShapeDtypeStruct(shape, jnp.uint8),
    "label": rows,
    "row": rows,
  }
  traced = {"p_uncond": jax.ShapeDtypeStruct((), jnp.float32)}
  return train_step.make_step(config).lower(state, inputs, traced)


def step_memory(config, batch):
  """Compile the training step and ask for its memory.

  Args:
    config: ConfigDict.
    batch: images on the device.

  Returns:
    GiB of the arguments (parameters, their average, Adam's two moments), of
    what the step needs besides, and of both; seconds of compilation.
  """
  start = time.perf_counter()
  arguments, besides = machine.peak_gib(_lower_step(config, batch).compile())
  return {
    "batch": batch,
    "remat": config.model.remat,
    "arguments_gib": arguments,
    "besides_gib": besides,
    "peak_gib": arguments + besides,
    "compile_seconds": time.perf_counter() - start,
  }


def _parse(argv):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "--configs", nargs="+", default=["imagenet64", "imagenet128"]
  )
  parser.add_argument("--batch", type=int, default=8, help="of the step")
  parser.add_argument("--dtype", help="in place of the config's")
  parser.add_argument(
    "--no-memory", action="store_true", help="do not compile the step"
  )
  parser.add_argument("--json", help="file to write")
  return parser.parse_args(argv)


def _measure(name, options):
  config = importlib.import_module(f"configs.{name}").get_config()
  if options.dtype:
    config.model.dtype = options.dtype
  result = forward_cost(config) | {"dtype": config.model.dtype, "memory": []}
  print(
    f"{name}: {result['gflop_per_image']:.1f} GFLOP per image forward, "
    f"{result['parameters']:,} parameters, {result['dtype']}",
    flush=True,
  )
  for remat in () if options.no_memory else (False, True):
    config.model.remat = remat
    memory = step_memory(config, options.batch)
    memory["kept_gib"] = train_step.kept(config, options.batch) / machine.GIB
    result["memory"].append(memory)
    print(
      f"  training step, batch {options.batch}, "
      f"{'with' if remat else 'without'} remat: "
      f"kept {memory['kept_gib']:.2f} GiB, peak {memory['peak_gib']:.2f} GiB, "
      f"of which {memory['arguments_gib']:.2f} state "
      f"(compiled in {memory['compile_seconds']:.0f} s)",
      flush=True,
    )
  return result


def main(argv):
  """Print a table and write it as JSON if asked to."""
  options = _parse(argv)
  report = machine.environment()
  print(", ".join(f"{key} {value}" for key, value in report.items()))
  report["models"] = {name: _measure(name, options) for name in options.configs}
  machine.write_json(options.json, report)


if __name__ == "__main__":
  main(sys.argv[1:])
