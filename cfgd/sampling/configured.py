"""A config's sampler, and what it is called with."""

import jax
import numpy as np

from cfgd import config as config_lib
from cfgd import diffusion
from cfgd import networks
from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.sampling import sampler as sampler_lib

# Of 255: by how much rounding may set two places of a call apart.
_ROUNDING = 16
_checked = set()  # programs, see `check_places`


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

  One shape is compiled: a call with fewer images than the devices take is
  filled up with copies of its last image, and raises errors.RunError where
  these differ. So drawing one image tests every place of a call.

  Args:
    config: ConfigDict of the model.
    params: see `arguments`.
    second: see `make_sampler`.
  """
  run = make_sampler(config, second)
  rows = config.sampling.batch_size * jax.local_device_count()

  def draw(index, label):
    padded = (distributed.pad(array, rows) for array in (index, label))
    outputs = run(*arguments(config, params, *padded))
    images, finite = map(distributed.merge, outputs)
    _check_copies(images[len(index) - 1 :], config.sampling.batch_size)
    return images[: len(index)], finite[: len(index)]

  return draw


def check_places(config, second, draw):
  """Draw one image in every place of a call, once for each compiled program.

  A compiler once spoilt a few rows of every call on two devices and not on one.

  Args:
    config: ConfigDict of the model.
    second: see `make_sampler`.
    draw: their `make_draw`.

  Raises:
    errors.RunError: the places differ.
  """
  run = make_sampler(config, second)
  # At w = 0 the second branch of guidance is skipped.
  sampling = config.sampling
  program = run, sampling.T, sampling.batch_size, sampling.w != 0
  if program not in _checked:
    draw(np.zeros(1, np.uint32), np.zeros(1, np.int32))
    _checked.add(program)


def _check_copies(images, per_device):
  """Raise unless all images [n, H, W, C] uint8 are one, but for rounding."""
  median = np.median(images, axis=0)
  apart = np.abs(images - median).max(axis=(1, 2, 3))
  wrong = int((apart > _ROUNDING).sum())
  if wrong:
    raise errors.RunError(
      f"{wrong} of {len(images)} copies of one image came out different, by up "
      f"to {apart.max():.0f} of 255, on {jax.local_device_count()} "
      f"{jax.devices()[0].platform} devices with sampling.batch_size="
      f"{per_device}: the compiler or a device computes wrongly, so these "
      "samples are not written; unset XLA_FLAGS, or change the number of "
      "devices or sampling.batch_size"
    )
