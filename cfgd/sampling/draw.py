"""A config's compiled sampler, which checks what it draws."""

from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from cfgd.runtime import distributed
from cfgd.runtime import errors

# Of 255: how far rounding may set two places of a call apart.
_ROUNDING = 16
_checked = set()  # programs, see `Draw.check_places`


class Draw(NamedTuple):
  """The sampler of a config.

  Attributes:
    run: of `sampler.make_sampler`.
    batch_size: images per device and call.
    seed: of the images.
    numbers: traced settings by name.
    logsnrs: [T].
  """

  run: Any
  batch_size: int
  seed: int
  numbers: dict[str, float]
  logsnrs: jax.Array

  def arguments(self, params, index, label):
    """Return what `run` takes for images index [n], n divisible by devices."""
    devices = jax.local_device_count()
    return (
      params,
      *distributed.split((index.astype(np.uint32), label), devices),
      np.uint32(self.seed),
      jax.tree.map(np.float32, self.numbers),
      self.logsnrs,
    )

  def __call__(self, params, index, label):
    """Draw the images of one call.

    One shape is compiled: a call with fewer images than it takes is filled up
    with copies of its last one.

    Args:
      params: (model's, guiding network's or None), on this process's devices.
      index: [n] numbers of the images, at most batch_size per device.
      label: [n].

    Returns:
      (images [n, H, W, C] uint8, finite [n]).

    Raises:
      errors.RunError: the copies differ.
    """
    rows = self.batch_size * jax.local_device_count()
    padded = (distributed.pad(array, rows) for array in (index, label))
    outputs = self.run(*self.arguments(params, *padded))
    images, finite = map(distributed.merge, outputs)
    self._check_copies(images[len(index) - 1 :])
    return images[: len(index)], finite[: len(index)]

  def check_places(self, params):
    """Draw one image in every place of a call, once per compiled program.

    A compiler once spoilt a few rows of every call on two devices, but not on
    one.

    Raises:
      errors.RunError: the places differ.
    """
    # At w = 0 the second branch of guidance is skipped.
    guided = self.numbers["w"] != 0
    program = self.run, len(self.logsnrs), self.batch_size, guided
    if program not in _checked:
      self(params, np.zeros(1, np.uint32), np.zeros(1, np.int32))
      _checked.add(program)

  def _check_copies(self, images):
    """Raise unless images [n, H, W, C] are equal up to rounding."""
    median = np.median(images, axis=0)
    apart = np.abs(images - median).max(axis=(1, 2, 3))
    wrong = int((apart > _ROUNDING).sum())
    if wrong:
      raise errors.RunError(
        f"{wrong} of {len(images)} copies of one image differ, by up to "
        f"{apart.max():.0f} of 255, on {jax.local_device_count()} "
        f"{jax.devices()[0].platform} devices with sampling.batch_size="
        f"{self.batch_size}: the compiler or a device computes wrongly, so no "
        "samples are written; unset XLA_FLAGS, or change the number of devices "
        "or sampling.batch_size"
      )
