"""The network of a config: the module, and its parameters' shapes or values."""

import functools

import jax
import jax.numpy as jnp

from cfgd import config as config_lib
from cfgd.models import classifier
from cfgd.models import unet


def build(config):
  """Return the Flax module that `config.task` trains."""
  if config.task == "classifier":
    return classifier.Classifier(**config_lib.classifier_arguments(config))
  return unet.UNet(**config_lib.unet_arguments(config))


def _inputs(config):
  """Return the shapes of a forward pass of one image."""
  z = jax.ShapeDtypeStruct((1, *config_lib.image_shape(config)), jnp.float32)
  time = jax.ShapeDtypeStruct((1,), jnp.float32)
  label = jax.ShapeDtypeStruct((1,), jnp.int32)
  return (z, time) if config.task == "classifier" else (z, time, label)


def param_shapes(config):
  """Return the tree of ShapeDtypeStruct of the parameters, computing none."""
  shapes = _param_shapes(build(config), _inputs(config))
  return jax.tree.map(lambda shape: shape, shapes)  # theirs to change


@functools.cache
def _param_shapes(network, inputs):
  # Tracing takes a second; the cells of a sweep ask for the same network.
  return jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]


def initial_params(config):
  """Return fresh parameters, a function of `config.seed`."""
  inputs = [jnp.zeros(each.shape, each.dtype) for each in _inputs(config)]
  initialise = _compiled_init(build(config))
  return initialise(jax.random.key(config.seed), *inputs)["params"]


@functools.cache
def _compiled_init(network):
  """Cached, so that the trainings of a sweep share one compilation."""
  return jax.jit(network.init)


def flop(lowered):
  """Return XLA's count of a lowered program for one device.

  An addition is one FLOP, as is a product. Compiled programs miss what became a
  library call, so they are asked only where the backend has no other count.
  """
  cost = lowered.cost_analysis() or lowered.compile().cost_analysis()
  return (cost[0] if isinstance(cost, list) else cost)["flops"]


def forward_flop(config):
  """Return the FLOP of one image's forward pass."""
  apply = jax.jit(build(config).apply)
  return flop(apply.lower({"params": param_shapes(config)}, *_inputs(config)))
