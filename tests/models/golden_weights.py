"""Weights by a rule, so that networks can be compared without storing any."""

import re
import zlib

import jax
import numpy as np

_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "embedding": "weight",
  "bias": "bias",
}


def torch_name(path):
  """Map a path in our tree to guided-diffusion's state-dict key."""
  *modules, leaf = path
  module = re.sub(r"_(\d+)", r".\1", ".".join(modules))
  return f"{module}.{_LEAVES[leaf]}"


def _draw(name, shape):
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  normal = rng.standard_normal(shape)
  if name.endswith("bias"):
    weight = 0.1 * normal
  elif name == "label_emb.weight":
    weight = 0.5 * normal
  elif len(shape) == 1:
    weight = 1.0 + 0.1 * normal
  else:
    weight = normal / np.sqrt(np.prod(shape[1:]))
  return weight.astype(np.float32)


def _to_torch_shape(path, shape):
  if path[-1] != "kernel":
    return shape
  if len(shape) == 4:
    return shape[3], shape[2], *shape[:2]
  # q, k, v and their projection are one-dimensional convolutions there.
  tail = (1,) if path[-2] in ("qkv", "proj_out") else ()
  return (shape[1], shape[0], *tail)


def _to_flax(path, weight):
  if path[-1] != "kernel":
    return weight
  if weight.ndim == 4:
    return weight.transpose(2, 3, 1, 0)
  return weight.reshape(weight.shape[:2]).T


def fill(shapes):
  """Return (params, {state-dict key: float32 array in PyTorch's layout})."""
  drawn = {}

  def make(path, leaf):
    path = [key.key for key in path]
    name = torch_name(path)
    drawn[name] = _draw(name, _to_torch_shape(path, leaf.shape))
    return _to_flax(path, drawn[name])

  return jax.tree_util.tree_map_with_path(make, shapes), drawn
