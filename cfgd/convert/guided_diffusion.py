"""Published ADM weights (guided-diffusion's `.pt` files) as our networks.

A state dict is read without running code that its pickle may carry, and its
names and layouts are rewritten to our parameter trees. Only `read` imports
PyTorch.
"""

import io
import os
import re
import zipfile

from etils import epath
from flax import traverse_util
import numpy as np

from cfgd.runtime import errors
from cfgd.runtime import files

_EXPECTED = "a state dict written by torch.save (name -> float tensor)"
_ZIP = b"PK\x03\x04"
# The pickled magic number at the start of files by PyTorch before 1.6.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# Flax's parameter names that differ from PyTorch's.
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


# Files.


def read(path, ignore=()):
  """Return a state dict {name: float32 array}; a file with code is refused.

  Arrays may be views of the mapped file; one in a bucket is read into memory.
  Entries whose key ends in one of `ignore` are left out.
  """
  path = os.fspath(path)
  legacy = _check_format(path)
  remote = files.in_bucket(path)
  try:
    import torch
  except ImportError as error:
    raise errors.UserError(
      f"{path}: reading it needs PyTorch: pip install 'cfgd[convert]'"
    ) from error
  try:
    state = torch.load(
      io.BytesIO(epath.Path(path).read_bytes()) if remote else path,
      map_location="cpu",
      weights_only=True,
      mmap=not (legacy or remote),
    )
  except Exception as error:  # a damaged file can fail anywhere
    raise _refusal(path, _reason(error)) from error
  return _to_numpy(path, state, torch, ignore)


def _refusal(path, found):
  return errors.UserError(f"{path}: expected {_EXPECTED}, found {found}")


def _check_format(path):
  """Return whether a file has PyTorch's old format; refuse foreign files."""
  try:
    with epath.Path(path).open("rb") as file:
      head = file.read(len(_LEGACY))
      size = file.seek(0, os.SEEK_END)
      complete = zipfile.is_zipfile(file)
  except OSError as error:
    raise _refusal(
      path, f"nothing to read ({error.strerror or type(error).__name__})"
    ) from error
  if head == _LEGACY:
    return True
  if not size:
    raise _refusal(path, "an empty file")
  if head.startswith(b"\x80"):
    raise _refusal(path, "a bare pickle, which can carry code: not opened")
  if not head.startswith(_ZIP):
    raise _refusal(path, f"a file of another kind that starts with {head!r}")
  if not complete:
    # A zip's table of contents is at its end.
    raise _refusal(path, f"a truncated one of {size} bytes: copy it again")
  return False


def _reason(error):
  """Return in a few words why torch.load refused a file."""
  message = str(error)
  code = re.search(r"GLOBAL ([\w.]+)", message)
  if code:
    return f"a pickle with code ({code[1].rstrip('.')}), which was not run"
  first = " ".join(message.split()).split(". ")[0]
  return f"a damaged or foreign file ({type(error).__name__}: {first})"


def _to_numpy(path, state, torch, ignore):
  if not isinstance(state, dict):
    raise _refusal(path, f"an object of type {type(state).__name__}")
  floats = (torch.float32, torch.float16, torch.bfloat16)
  arrays = {}
  for key, tensor in state.items():
    if not isinstance(key, str):
      raise _refusal(path, f"the key {key!r}, which is not a string")
    if key.rsplit(".", 1)[-1] in ignore:
      continue
    if not isinstance(tensor, torch.Tensor):
      raise _refusal(path, f"type {type(tensor).__name__} under {key!r}")
    if tensor.dtype not in floats or tensor.layout != torch.strided:
      raise _refusal(
        path, f"a tensor of {tensor.dtype}, {tensor.layout} under {key!r}"
      )
    arrays[key] = tensor.detach().to(torch.float32).numpy()
  return arrays


# Names and layouts.


def torch_key(path):
  """Map a path in our tree, ("out_2", "kernel"), to a key, "out.2.weight"."""
  *modules, leaf = path
  module = re.sub(r"_(\d+)(?=[_.]|$)", r".\1", ".".join(modules))
  return f"{module}.{_LEAVES.get(leaf, leaf)}"


def to_flax(state, shapes, *, path):
  """Convert a state dict to a parameter tree of NumPy arrays.

  Args:
    state: {key: array} in PyTorch's layouts, from `read`.
    shapes: tree of ShapeDtypeStruct of the network.
    path: of the file, for messages.
  """
  wanted = traverse_util.flatten_dict(shapes)
  keys = {ours: torch_key(ours) for ours in wanted}
  check_keys(state, keys.values(), path)
  params = {}
  for ours, leaf in wanted.items():
    key, weight = keys[ours], state[keys[ours]]
    shape = _torch_shape(ours, leaf.shape, weight.ndim)
    check_shape(key, weight.shape, shape, path)
    bad = weight.size - np.count_nonzero(np.isfinite(weight))
    if bad:
      raise errors.UserError(
        f"{path}: {key} has {bad} of {weight.size} numbers that are not finite"
      )
    if ours[-1] == "kernel":
      weight = weight.reshape(shape[: len(leaf.shape)])
      weight = weight.transpose(*range(2, weight.ndim), 1, 0)
    params[ours] = np.array(weight, leaf.dtype, order="C")
  return traverse_util.unflatten_dict(params)


def _torch_shape(path, shape, rank):
  """Return the shape in PyTorch of our parameter at `path`.

  Of the tensor's rank: a linear layer of ours may be a convolution of width 1
  there, whose kernel ends in axes of size 1.
  """
  if path[-1] != "kernel":
    return tuple(shape)
  *space, inputs, outputs = shape
  return (outputs, inputs, *space, *(1,) * (rank - len(shape)))


def check_keys(found, wanted, path):
  """Raise errors.UserError naming missing and unexpected keys, if any."""
  missing = [key for key in wanted if key not in found]
  wanted = set(wanted)
  unexpected = [key for key in found if key not in wanted]
  differences = [
    f"{len(keys)} {what} ({', '.join(map(ascii, keys[:3]))}"
    f"{', ...' if len(keys) > 3 else ''})"
    for what, keys in (("missing", missing), ("unexpected", unexpected))
    if keys
  ]
  if differences:
    raise errors.UserError(
      f"{path}: keys are not the network's: {', '.join(differences)}"
    )


def check_shape(key, found, wanted, path):
  """Raise errors.UserError unless the tensor under `key` has this shape."""
  if tuple(found) != tuple(wanted):
    raise errors.UserError(
      f"{path}: {key} has shape {tuple(found)}, the network wants "
      f"{tuple(wanted)}"
    )


def add_null_row(params):
  """Append a null label of zeros to the label embedding of a parameter tree.

  Fine-tuning with label dropout starts there: zeros leave the time embedding
  unchanged.
  """
  if "label_emb" not in params:
    raise errors.UserError("a network without labels cannot get a null label")
  rows = params["label_emb"]["embedding"]
  rows = np.concatenate([rows, np.zeros_like(rows[:1])])
  return {**params, "label_emb": {"embedding": rows}}
