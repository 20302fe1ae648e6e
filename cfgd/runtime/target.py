"""The devices that programs are compiled for: those here, unless told."""

import contextlib
import contextvars
from typing import NamedTuple

import jax

_chosen = contextvars.ContextVar("target", default=None)


@contextlib.contextmanager
def compiling_for(devices):
  """Trace and compile for other devices inside the block.

  Args:
    devices: such as a topology's, which no machine here needs to have.
  """
  token = _chosen.set(tuple(devices))
  try:
    yield
  finally:
    _chosen.reset(token)


def as_written():
  """Trace a network as its definition reads, without an accelerator's forms."""
  return compiling_for([_Plain()])


class _Plain(NamedTuple):
  platform: str = "cpu"


def chosen():
  """Return the devices of `compiling_for`, or None for those here."""
  return _chosen.get()


def platform():
  """Return "cpu", "gpu" or "tpu"."""
  return _first().platform


def capability():
  """Return a GPU's CUDA compute capability, such as "9.0", or None."""
  return getattr(_first(), "compute_capability", None)


def _first():
  return (chosen() or jax.devices())[0]
