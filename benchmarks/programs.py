"""The programs under measurement, as training and sampling build them."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from cfgd import build
from cfgd.runtime import distributed
from cfgd.training import state as state_lib


def train_inputs(config, batch_size):
  """Return (state, batch, traced numbers) of a step, on all devices."""
  state = state_lib.create(
    build.initial_params(config), build.optimizer(config)
  )
  rng = np.random.default_rng(0)
  shape = (batch_size, *build.image_shape(config))
  labels = rng.integers(config.data.num_classes, size=batch_size)
  batch = {
    "image": rng.integers(0, 256, shape, dtype=np.uint8),
    "label": labels.astype(np.int32),
    "row": np.arange(batch_size, dtype=np.int32),
  }
  return (
    distributed.replicate(state),
    distributed.split(batch, jax.local_device_count()),
    jax.tree.map(
      lambda each: jnp.zeros(each.shape, each.dtype), traced_shapes(config)
    ),
  )


def train_input_shapes(config, batch, devices=1):
  """Return the shapes of `train_inputs`, without any arrays or devices."""
  state = jax.eval_shape(
    lambda params: state_lib.create(params, build.optimizer(config)),
    build.param_shapes(config),
  )
  rows = jax.ShapeDtypeStruct((devices, batch // devices), jnp.int32)
  shape = (*rows.shape, *build.image_shape(config))
  image = jax.ShapeDtypeStruct(shape, jnp.uint8)
  batch = {"image": image, "label": rows, "row": rows}
  return state, batch, traced_shapes(config)


def traced_shapes(config):
  """Return the shapes of what a task's loss reads beside the batch."""
  number = jax.ShapeDtypeStruct((), jnp.float32)
  if config.task != "guided_student":
    return {"p_uncond": number}
  teacher = build.param_shapes(build.teacher_config(config))
  return {"teacher": teacher, "w_low": number, "w_high": number}


def sampler(config, batch_size, num_steps, *, two_passes=None):
  """Return (pmapped sampler, its arguments) with fresh weights.

  The last layer of a fresh network is zero, which changes no timing.

  Args:
    config: ConfigDict.
    batch_size: over all devices of this process.
    num_steps: T, network evaluations per branch.
    two_passes: see `build.sampler`.
  """
  config = config.copy_and_resolve_references()
  config.sampling.T = num_steps
  index = np.arange(batch_size)
  draw = build.sampler(config, two_passes=two_passes)
  params = distributed.replicate_locally((build.initial_params(config), None))
  label = (index % config.data.num_classes).astype(np.int32)
  return draw.run, draw.arguments(params, index, label)


def sampler_shapes(config, batch, devices):
  """Return (pmapped sampler, shapes of its arguments), without any arrays."""
  draw = build.sampler(config)
  rows = devices, batch // devices
  return draw.run, (
    (build.param_shapes(config), None),
    jax.ShapeDtypeStruct(rows, jnp.uint32),
    jax.ShapeDtypeStruct(rows, jnp.int32),
    jax.ShapeDtypeStruct((), jnp.uint32),
    jax.tree.map(lambda _: jax.ShapeDtypeStruct((), jnp.float32), draw.numbers),
    jax.ShapeDtypeStruct(draw.logsnrs.shape, jnp.float32),
  )


def forward(config, batch_size):
  """Return (jitted network, its arguments) with fresh weights."""
  network = build.network(config)
  shape = (batch_size, *build.image_shape(config))
  arguments = (
    build.initial_params(config),
    np.random.default_rng(0).standard_normal(shape, np.float32),
    np.full(batch_size, 500.0, np.float32),
    np.arange(batch_size, dtype=np.int32) % config.data.num_classes,
  )
  return jax.jit(
    lambda params, *inputs: network.apply({"params": params}, *inputs)
  ), arguments


def num_bytes(tree):
  """Return the bytes of a tree of arrays or of their shapes."""
  return sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def residual_bytes(config, batch):
  """Return the bytes that the forward pass keeps for the backward pass.

  Parameters are included, dropout masks are not. With model.remat it is what
  rematerialization keeps.
  """
  network = build.network(config)
  shape = (batch, *build.image_shape(config))

  def backward(params, z, time, label):
    return jax.vjp(
      lambda params: network.apply({"params": params}, z, time, label), params
    )[1]

  return num_bytes(
    jax.eval_shape(
      backward,
      build.param_shapes(config),
      jax.ShapeDtypeStruct(shape, jnp.float32),
      jax.ShapeDtypeStruct((batch,), jnp.float32),
      jax.ShapeDtypeStruct((batch,), jnp.int32),
    )
  )
