"""Chips that can be compiled for without having one."""

import math
import os
import pathlib
import re
from typing import NamedTuple

import jax
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import topologies

from cfgd.runtime import errors

_H100 = pathlib.Path(__file__).parent / "targets" / "h100_sxm.txtpb"


class Chip(NamedTuple):
  """What a data sheet says about one chip.

  Attributes:
    platform: "tpu" or "gpu".
    flop_per_second: of bfloat16 products.
    bytes_per_second: of its memory.
    memory: in bytes.
  """

  platform: str
  flop_per_second: float
  bytes_per_second: float
  memory: int


# https://docs.cloud.google.com/tpu/docs, and targets/h100_sxm.txtpb.
CHIPS = {
  "v5e": Chip("tpu", 197e12, 819e9, 16 * 2**30),
  "v5p": Chip("tpu", 459e12, 2765e9, 95 * 2**30),
  "v6e": Chip("tpu", 918e12, 1640e9, 32 * 2**30),
  "h100": Chip("gpu", 989e12, 3352e9, 84942979072),
}


def parse(topology):
  """Return (Chip, shape) of a slice's name, such as v5p:2x2x1 or h100:1x1x4."""
  name, _, shape = topology.partition(":")
  sides = re.fullmatch(r"[1-9][0-9]*(x[1-9][0-9]*)*", shape)
  if name not in CHIPS or not sides:
    raise errors.UserError(
      f"--topology={topology}: must be CHIP:SIDES with a chip of "
      f"{', '.join(CHIPS)}, such as v5p:2x2x1, v5e:4x4 or h100:1x1x1"
    )
  return CHIPS[name], shape


def count(shape):
  """Return the number of chips of a shape such as 2x2x1."""
  return math.prod(int(side) for side in shape.split("x"))


def devices(topology):
  """Return the devices of a slice that need not exist; call before other JAX.

  Raises:
    errors.UserError: there is no such slice, or its compiler is not installed.
  """
  chip, shape = parse(topology)
  _hide_accelerators()
  try:
    if chip.platform == "tpu":
      found = topologies.get_topology_desc(
        platform="tpu", topology_name=topology
      )
    else:
      found = topologies.get_topology_desc(
        platform="cuda", target_config=_H100.read_text(), topology=shape
      )
  except (RuntimeError, ValueError, NotImplementedError) as error:
    extra = {"tpu": "tpu", "gpu": "cuda"}[chip.platform]
    raise errors.UserError(
      f"--topology={topology}: {errors.first_line(error)}; is it a real slice, "
      f"and is the compiler installed (pip install -e '.[{extra}]')?"
    ) from error
  if chip.platform == "gpu":
    _answer_for(found.devices[0].compute_capability)
  return found.devices


def _answer_for(capability):
  """Have JAX's attention ask this capability, not the GPU that is not there."""

  def reaches(least):
    had, needed = (
      tuple(int(n) for n in c.split(".")) for c in (capability, least)
    )
    return had >= needed

  fused_attention_stablehlo.check_compute_capability = reaches


def _hide_accelerators():
  """Compile as on any machine: with no device of its own, without its options.

  The CPU's XLA options would reach the other compiler, too.
  """
  jax.config.update("jax_platforms", "cpu")
  flags = os.environ.get("XLA_FLAGS", "").split()
  kept = [
    f for f in flags if f != "--xla_disable_hlo_passes=cse_barrier_expander"
  ]
  os.environ["XLA_FLAGS"] = " ".join(kept)
  os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
  # libtpu asks nobody where it is, and takes no lock.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
