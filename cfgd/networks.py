"""The network of a config: the module, and its parameters' shapes or values."""

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
  """Return arguments to initialise the network at."""
  z = jnp.zeros((1, *config_lib.image_shape(config)))
  time, label = jnp.zeros((1,)), jnp.zeros((1,), jnp.int32)
  return (z, time) if config.task == "classifier" else (z, time, label)


def param_shapes(config):
  """Return the tree of ShapeDtypeStruct of the parameters, computing none."""
  network = build(config)
  variables = jax.eval_shape(network.init, jax.random.key(0), *_inputs(config))
  return variables["params"]


def initial_params(config):
  """Return fresh parameters, a function of `config.seed`."""
  initialise = jax.jit(build(config).init)
  return initialise(jax.random.key(config.seed), *_inputs(config))["params"]
