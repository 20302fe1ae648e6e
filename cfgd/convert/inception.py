"""Fetch, check and convert the published weights of FID's Inception-v3.

The file is pytorch-fid's conversion of TensorFlow's graph. PyTorch is needed
once, to read it: the converted parameters are cached.
"""

import hashlib
import importlib.util
import io
import urllib.request
import zipfile

from absl import logging
from etils import epath
from flax import traverse_util
import numpy as np

from cfgd.convert import guided_diffusion
from cfgd.models import inception
from cfgd.runtime import errors
from cfgd.runtime import files

FILE_NAME = "pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
ADDRESSES = (
  "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
  + FILE_NAME,
  "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
  "weights-inception-2015-12-05-6726825d.pth",
)
_TIMEOUT_SECONDS = 30
_BN_EPS = 1e-3
_SOURCE = "source_sha256"  # in our own file, beside the parameters
_CONVERT = (
  "PyTorch is not installed here: once, on a machine that has it (pip install "
  f"'cfgd[convert]'), convert {FILE_NAME} by python -m "
  "experiments.import_checkpoint --model=inception --source=FILE "
  "--workdir=DIR, where DIR may be gs://..., and give "
  "--config.metrics.inception=DIR/inception-....npz"
)
_GET_IT = (
  f"get {FILE_NAME} from {ADDRESSES[0]} and give it as "
  "--config.metrics.inception=PATH"
)


def load(path, cache_dir):
  """Return the parameters of `models.inception.Inception`, and their name.

  The name has the first digits of the file's SHA-256, since scores by different
  weights are not comparable.

  Args:
    path: the published .pth, another with the same names and shapes, or an .npz
      of `cache_dir`, which needs no PyTorch; "" is the published file, fetched
      into `cache_dir` if it is missing.
    cache_dir: folder for the converted parameters.
  """
  cache_dir = epath.Path(cache_dir).expanduser()
  if not path:
    path = cache_dir / FILE_NAME
    kept = _kept(cache_dir, SHA256)
    if kept.exists():
      return _read_npz(kept)
    if not path.exists():
      _check_for_torch("Inception's weights")  # before 90 MB are fetched
      _fetch(path)
  path = epath.Path(path).expanduser()
  return _read_npz(path if path.suffix == ".npz" else keep(path, cache_dir))


def keep(path, folder):
  """Convert the published .pth, or one like it; return the .npz in a folder.

  The .npz is named by the file's hash; an existing one stays.
  """
  path = epath.Path(path).expanduser()
  if not path.is_file():
    raise errors.UserError(f"{path}: no such file; {_GET_IT}")
  with path.open("rb") as file:
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
  kept = _kept(epath.Path(folder).expanduser(), sha256)
  if not kept.exists():
    _check_for_torch(path)
    state = guided_diffusion.read(path, ignore=("num_batches_tracked",))
    params = convert(state, path=path)
    with files.open_atomic(kept) as file:
      flat = traverse_util.flatten_dict(params, sep="/")
      np.savez(file, **flat, **{_SOURCE: sha256})
  return kept


def _check_for_torch(what):
  if importlib.util.find_spec("torch") is None:
    raise errors.UserError(f"{what}: {_CONVERT}")


def _kept(cache_dir, sha256):
  return cache_dir / f"inception-{sha256[:16]}.npz"


def _fetch(path):
  """Download the published file and check its hash."""
  failures = []
  for address in ADDRESSES:
    logging.info("Fetching %s.", address)
    host = "/".join(address.split("/")[2:5])
    try:
      with urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as reply:
        data = reply.read()
    except OSError as error:
      failures.append(f"{host}: {error}")
      continue
    found = hashlib.sha256(data).hexdigest()
    if found == SHA256:
      files.write_atomic(path, data)
      return
    failures.append(f"{host}: SHA-256 {found[:8]}..., not {SHA256[:8]}...")
  raise errors.UserError(
    f"Inception weights: not in {path.parent}, and they cannot be downloaded "
    f"({'; '.join(failures)}): {_GET_IT}"
  )


def _read_npz(path):
  if not path.is_file():
    raise errors.UserError(f"{path}: no such file; {_GET_IT}")
  try:
    with np.load(io.BytesIO(path.read_bytes())) as arrays:
      arrays = dict(arrays)
      sha256 = str(arrays.pop(_SOURCE))
  except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise errors.UserError(
      f"{path}: not converted Inception weights ({error}); {_GET_IT}"
    ) from error
  wanted = traverse_util.flatten_dict(inception.param_shapes(), sep="/")
  guided_diffusion.check_keys(arrays, wanted, path)
  for key, leaf in wanted.items():
    guided_diffusion.check_shape(key, arrays[key].shape, leaf.shape, path)
  if sha256 != SHA256:
    logging.warning(
      "%s is not from the published weights (SHA-256 %s..., this file %s...): "
      "results are not comparable with published FIDs.",
      *(path, SHA256[:8], sha256[:8]),
    )
  params = traverse_util.unflatten_dict(arrays, sep="/")
  return params, f"inception-{sha256[:8]}"


def convert(state, *, path):
  """Convert pytorch-fid's state dict to parameters, folding BatchNorm."""
  shapes = torch_shapes()
  guided_diffusion.check_keys(state, shapes, path)
  for key, shape in shapes.items():
    guided_diffusion.check_shape(key, state[key].shape, shape, path)
    if not np.isfinite(state[key]).all():
      raise errors.UserError(f"{path}: {key} has numbers that are not finite")
  params = {}
  for layer, shape in _layers():
    if layer == ("fc",):
      weight, bias = (state[f"fc.{leaf}"] for leaf in ("weight", "bias"))
    else:
      weight, bias = _fold(state, ".".join(layer))
    weight = weight.transpose(*range(2, weight.ndim), 1, 0).reshape(shape)
    params[*layer, "kernel"] = np.array(weight, np.float32, order="C")
    params[*layer, "bias"] = np.array(bias, np.float32)
  return traverse_util.unflatten_dict(params)


def _layers():
  """Yield (path in the tree, shape of the kernel) of each layer."""
  flat = traverse_util.flatten_dict(inception.param_shapes())
  for path, leaf in flat.items():
    if path[-1] == "kernel":
      yield path[:-1], leaf.shape


def torch_shapes():
  """Return {key: shape} of the published state dict."""
  shapes = {}
  for layer, (*space, inputs, outputs) in _layers():
    name = ".".join(layer)
    if layer == ("fc",):
      shapes["fc.weight"], shapes["fc.bias"] = (outputs, inputs), (outputs,)
      continue
    shapes[f"{name}.conv.weight"] = (outputs, inputs, *(space or (1, 1)))
    for leaf in ("weight", "bias", "running_mean", "running_var"):
      shapes[f"{name}.bn.{leaf}"] = (outputs,)
  return shapes


def _fold(state, layer):
  """Return weight and bias of a convolution, its BatchNorm folded in."""
  scale, shift, mean, variance = (
    state[f"{layer}.bn.{leaf}"].astype(np.float64)
    for leaf in ("weight", "bias", "running_mean", "running_var")
  )
  factor = scale / np.sqrt(variance + _BN_EPS)
  weight = state[f"{layer}.conv.weight"] * factor[:, None, None, None]
  return weight, shift - mean * factor
