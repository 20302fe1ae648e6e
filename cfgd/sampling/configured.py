"""A config's sampler, and what it is called with."""

import jax
import numpy as np

from cfgd import config as config_lib
from cfgd import diffusion
from cfgd import distributed
from cfgd import networks
from cfgd.sampling import sampler as sampler_lib


def make_sampler(config, second=None, *, two_passes=None):
  """Return the `sampler.make_sampler` of a config.

  Args:
    config: ConfigDict of the model.
    second: ConfigDict of the classifier or the weaker model, or None.
    two_passes: see `diffusion.classifier_free_guidance`; by default what the
      platform prefers.
  """
  if two_passes is None:
    two_passes = sampler_lib.prefers_two_passes()
  return sampler_lib.make_sampler(
    _part_of(config),
    second and _part_of(second),
    sampler_lib.Choices(**config_lib.sampling_choices(config)),
    shape=config_lib.image_shape(config),
    null_label=config.data.num_classes,
    two_passes=two_passes,
  )


def _part_of(config):
  return sampler_lib.Part(
    networks.build(config), **config_lib.parametrization(config)
  )


def arguments(config, params, index, label):
  """Return what a config's sampler is called with.

  Args:
    config: ConfigDict of the model.
    params: (model's, second's or None), on this process's devices.
    index: [n] numbers of the images, divisible by the devices.
    label: [n].
  """
  devices = jax.local_device_count()
  sampling = config.sampling
  return (
    params,
    *distributed.split((index.astype(np.uint32), label), devices),
    np.uint32(sampling.seed),
    jax.tree.map(np.float32, config_lib.sampling_numbers(config)),
    diffusion.logsnr_grid(sampling.T, **config_lib.logsnr_range(config)),
  )


def make_draw(config, params, second=None):
  """Return (index [n], label [n]) -> (images [n, H, W, C] uint8, finite [n]).

  Args:
    config: ConfigDict of the model.
    params: see `arguments`.
    second: see `make_sampler`.
  """
  run = make_sampler(config, second)
  rows = config.sampling.batch_size * jax.local_device_count()

  def draw(index, label):
    # The last call is filled up, so that one shape is compiled.
    padded = (distributed.pad(array, rows) for array in (index, label))
    outputs = run(*arguments(config, params, *padded))
    return tuple(distributed.merge(out)[: len(index)] for out in outputs)

  return draw
