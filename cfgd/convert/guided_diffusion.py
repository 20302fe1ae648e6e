"""Published ADM weights (guided-diffusion's `.pt` files) as our networks.

A state dict is read without running code that its pickle may carry, and its
names and layouts are rewritten to our parameter trees. A network trained on
ADM's discrete timesteps becomes a DenoiseFn of log-SNR. Only `read` imports
PyTorch.
"""

import functools
import os
import re
import zipfile

from flax import traverse_util
import jax.numpy as jnp
import numpy as np

from cfgd import diffusion
from cfgd.runtime import errors

_NUM_TIMESTEPS = 1000

_EXPECTED = "a state dict written by torch.save (name -> float tensor)"
_ZIP = b"PK\x03\x04"
# The pickled magic number at the start of files by PyTorch before 1.6.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# Flax's parameter names that differ from PyTorch's.
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


# Files.


def read(path, ignore=()):
  """Return a state dict {name: float32 array}; a file with code is refused.

  Arrays may be views of the mapped file. Entries whose key ends in one of
  `ignore` are left out.
  """
  path = os.fspath(path)
  legacy = _check_format(path)
  try:
    import torch
  except ImportError as error:
    raise errors.UserError(
      f"{path}: reading it needs PyTorch: pip install 'cfgd[convert]'"
    ) from error
  try:
    state = torch.load(
      path, map_location="cpu", weights_only=True, mmap=not legacy
    )
  except Exception as error:  # a damaged file can fail anywhere
    raise _refusal(path, _reason(error)) from error
  return _to_numpy(path, state, torch, ignore)


def _refusal(path, found):
  return errors.UserError(f"{path}: expected {_EXPECTED}, found {found}")


def _check_format(path):
  """Return whether a file has PyTorch's old format; refuse foreign files."""
  try:
    with open(path, "rb") as file:
      head = file.read(len(_LEGACY))
      size = file.seek(0, os.SEEK_END)
      complete = zipfile.is_zipfile(file)
  except OSError as error:
    raise _refusal(path, f"nothing to read ({error.strerror})") from error
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


# ADM's time and variance.


def _alpha_bar(schedule):
  """Return [1000] float64 alpha^2 at ADM's timesteps."""
  if schedule == "linear":  # Ho et al., arXiv:2006.11239, section 4
    betas = np.linspace(1e-4, 0.02, _NUM_TIMESTEPS)
  elif schedule == "cosine":  # Nichol & Dhariwal, arXiv:2102.09672, eq. 17
    s = np.arange(_NUM_TIMESTEPS + 1) / _NUM_TIMESTEPS
    level = np.cos((s + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1.0 - level[1:] / level[:-1], 0.999)
  else:
    raise errors.UserError(
      f"noise schedule {schedule!r}: choose 'linear' or 'cosine'"
    )
  return np.cumprod(1.0 - betas)


@functools.cache
def _logsnr_table(schedule):
  """Return [1000] float64 log-SNR at timesteps 0, 1, ...: decreasing."""
  alpha_bar = _alpha_bar(schedule)
  return np.log(alpha_bar) - np.log1p(-alpha_bar)


def logsnr_range(schedule):
  """Return (lowest, highest) log-SNR that a schedule of ADM has.

  Args:
    schedule: "linear" or "cosine".

  Returns:
    Two floats: at timesteps 999 and 0.
  """
  table = _logsnr_table(schedule)
  return float(table[-1]), float(table[0])


def timestep_of_logsnr(logsnr, schedule):
  """Invert a discrete schedule of ADM, linearly in log-SNR between timesteps.

  Args:
    logsnr: any shape.
    schedule: "linear" or "cosine".

  Returns:
    float32 timesteps of logsnr's shape, 0 (clean) to 999; log-SNRs outside
    `logsnr_range` get the nearer end.
  """
  table = np.float32(_logsnr_table(schedule)[::-1])  # interp wants it to rise
  timesteps = np.arange(_NUM_TIMESTEPS, dtype=np.float32)[::-1]
  logsnr = jnp.asarray(logsnr, jnp.float32)
  return jnp.interp(logsnr, table, timesteps)


def learned_v(raw):
  """Map ADM's variance channels to the interpolation v.

  The variance is exp(v log beta + (1 - v) log beta~), arXiv:2102.09672 eq. 15;
  the network's output is about -1 to 1 and, as there, not clipped.

  Args:
    raw: [...] second half of the network's channels.

  Returns:
    [...] v for diffusion.Prediction.
  """
  return (raw + 1.0) / 2.0


def denoiser(network, schedule):
  """Make a DenoiseFn of a network that was trained on ADM's timesteps.

  Args:
    network: (z [B, H, W, C], time [B], label [B]) -> [B, H, W, C] eps, or
      [B, H, W, 2C] eps and variance.
    schedule: "linear" or "cosine".

  Returns:
    A DenoiseFn; its `v` is None where the network has no variance channels.
  """

  def denoise(z, logsnr, label):
    out = network(z, timestep_of_logsnr(logsnr, schedule), label)
    channels = z.shape[-1]
    assert out.shape[-1] in (channels, 2 * channels), (out.shape, z.shape)
    if out.shape[-1] == channels:
      return diffusion.Prediction(out)
    eps, raw = jnp.split(out, 2, axis=-1)
    return diffusion.Prediction(eps, learned_v(raw))

  return denoise
