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
  "positional_embedding": "positional_embedding",
}
# q, k, v and their projection are one-dimensional convolutions there.
_CONV1D = ("qkv", "proj_out", "qkv_proj", "c_proj")


def torch_name(path):
  """Map a path in our tree to guided-diffusion's state-dict key."""
  *modules, leaf = path
  module = re.sub(r"_(\d+)", r".\1", ".".join(modules))
  return f"{module}.{_LEAVES[leaf]}"


def torch_shape(path, shape):
  """Return the shape in PyTorch of a parameter of ours."""
  if path[-1] != "kernel":
    return tuple(shape)
  if len(shape) == 4:
    return shape[3], shape[2], *shape[:2]
  tail = (1,) if path[-2] in _CONV1D else ()
  return (shape[1], shape[0], *tail)


def to_torch(path, array):
  """Bring a parameter, or its gradient, to PyTorch's layout."""
  array = np.asarray(array)
  shape = torch_shape(path, array.shape)
  if path[-1] == "kernel":
    array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
  return array.reshape(shape)


def _to_flax(path, weight):
  if path[-1] != "kernel":
    return weight
  if weight.ndim == 4:
    return weight.transpose(2, 3, 1, 0)
  return weight.reshape(weight.shape[:2]).T


def _draw(name, shape):
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  normal = rng.standard_normal(shape)
  if name.endswith("bias"):
    weight = 0.1 * normal
  elif name.endswith("positional_embedding") or name == "label_emb.weight":
    weight = 0.5 * normal
  elif len(shape) == 1:
    weight = 1.0 + 0.1 * normal
  else:
    weight = normal / np.sqrt(np.prod(shape[1:]))
  return weight.astype(np.float32)


def probe(name, shape):
  """Return the direction that a parameter's gradient is projected on."""
  seed = zlib.crc32(f"{name}#probe".encode())
  return np.random.default_rng(seed).standard_normal(shape)


def flatten(tree):
  """Return {state-dict key: (path in our tree, leaf)}."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  paths = ((tuple(key.key for key in path), leaf) for path, leaf in leaves)
  return {torch_name(path): (path, leaf) for path, leaf in paths}


def fill(shapes):
  """Return (params, {state-dict key: float32 array in PyTorch's layout})."""
  drawn = {}

  def make(path, leaf):
    path = [key.key for key in path]
    name = torch_name(path)
    drawn[name] = _draw(name, torch_shape(path, leaf.shape))
    return _to_flax(path, drawn[name])

  return jax.tree_util.tree_map_with_path(make, shapes), drawn
