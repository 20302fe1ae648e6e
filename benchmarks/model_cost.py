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
import json
import math
import platform
import sys
import time

import flax
import jax
import jax.numpy as jnp

from cfgd import config as config_lib
from cfgd.models import unet
from cfgd.training import losses
from cfgd.training import state as state_lib
from cfgd.training import steps

_GIB = 2**30


def _network(config, remat):
  arguments = config_lib.unet_arguments(config) | {"remat": remat}
  return unet.UNet(**arguments)


def _inputs(config, batch):
  shape = (batch, *config_lib.image_shape(config))
  return (
    jax.ShapeDtypeStruct(shape, jnp.float32),
    jax.ShapeDtypeStruct((batch,), jnp.float32),
    jax.ShapeDtypeStruct((batch,), jnp.int32),
  )


def _param_shapes(config, network):
  variables = jax.eval_shape(
    network.init, jax.random.key(0), *_inputs(config, 1)
  )
  return variables["params"]


def forward_cost(config):
  """Return the FLOP of one image's forward pass and the parameter count."""
  network = _network(config, remat=False)
  params = _param_shapes(config, network)
  lowered = jax.jit(network.apply).lower(
    {"params": params}, *_inputs(config, 1)
  )
  cost = lowered.cost_analysis()
  if not cost:  # some backends count only what they have compiled
    cost = lowered.compile().cost_analysis()
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  return {"gflop_per_image": cost["flops"] / 1e9, "parameters": count}


def kept(config, batch, remat):
  """Return the GiB that the forward pass leaves for the backward pass."""
  network = _network(config, remat)

  def backward(params, z, time, label):
    return jax.vjp(
      lambda params: network.apply({"params": params}, z, time, label), params
    )[1]

  residuals = jax.eval_shape(
    backward, _param_shapes(config, network), *_inputs(config, batch)
  )
  leaves = jax.tree.leaves(residuals)
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves) / _GIB


def _lower_step(config, batch, remat):
  """Lower training's own step for one device, without any arrays."""
  network = _network(config, remat)
  optimizer = state_lib.make_optimizer(**config_lib.adam_arguments(config))
  params = _param_shapes(config, network)
  state = jax.eval_shape(lambda p: state_lib.create(p, optimizer), params)
  step = steps.make_train_step(
    losses.diffusion_loss(
      network,
      null_label=config.data.num_classes,
      **config_lib.parametrization(config),
    ),
    optimizer,
    seed=0,
    ema_decay=config.optim.ema_decay,
    ema_warmup=False,
  )
  shape = (1, batch, *config_lib.image_shape(config))  # devices first
  rows = jax.ShapeDtypeStruct((1, batch), jnp.int32)
  inputs = {
    "image": jax.ShapeDtypeStruct(shape, jnp.uint8),
    "label": rows,
    "row": rows,
  }
  traced = {"p_uncond": jax.ShapeDtypeStruct((), jnp.float32)}
  return step.lower(state, inputs, traced)


def step_memory(config, batch, remat):
  """Compile the training step and ask for its memory.

  Args:
    config: ConfigDict.
    batch: images on the device.
    remat: see `unet.Encoder`.

  Returns:
    GiB of the arguments (parameters, their average, Adam's two moments), of
    what the step needs besides, and of both; seconds of compilation.
  """
  start = time.perf_counter()
  compiled = _lower_step(config, batch, remat).compile()
  memory = compiled.memory_analysis()
  arguments = memory.argument_size_in_bytes
  # Donated arguments become results: their place is counted once.
  results = memory.output_size_in_bytes - memory.alias_size_in_bytes
  besides = memory.temp_size_in_bytes + results
  return {
    "batch": batch,
    "remat": remat,
    "arguments_gib": arguments / _GIB,
    "besides_gib": besides / _GIB,
    "peak_gib": (arguments + besides) / _GIB,
    "compile_seconds": time.perf_counter() - start,
  }


def environment():
  """Return what the numbers depend on."""
  device = jax.devices()[0]
  return {
    "platform": device.platform,
    "device": device.device_kind,
    "machine": platform.machine(),
    "python": platform.python_version(),
    "jax": jax.__version__,
    "flax": flax.__version__,
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
    memory = step_memory(config, options.batch, remat)
    memory["kept_gib"] = kept(config, options.batch, remat)
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
  report = environment()
  print(", ".join(f"{key} {value}" for key, value in report.items()))
  report["models"] = {name: _measure(name, options) for name in options.configs}
  if options.json:
    with open(options.json, "w") as file:
      json.dump(report, file, indent=2)
      file.write("\n")


if __name__ == "__main__":
  main(sys.argv[1:])
