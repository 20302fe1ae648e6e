"""Reference statistics, our own or published by others.

Ours are an .npz with mu, sigma, mu_s, sigma_s (of the spatial features), the
features of some of the images, and `about`: JSON that names the images, the
protocol and the network. guided-diffusion's have the first four, and images as
arr_0; pytorch-fid's have mu and sigma alone. The protocol changes features by
more than good models differ, so a file without `about` is assumed to follow the
protocol of its form.
"""

import dataclasses
import functools
import hashlib
import json
import zipfile
import zlib

from etils import epath
import numpy as np

from cfgd.metrics import image_sets
from cfgd.metrics import scores
from cfgd.models import inception
from cfgd.runtime import errors
from cfgd.runtime import files

# Forms of others' files, by the protocol of their features.
_FORMS = {
  "adm": "guided-diffusion's form (mu_s or arr_0 beside mu)",
  "pytorch_fid": "pytorch-fid's form (mu and sigma alone)",
}


@dataclasses.dataclass(eq=False)
class Reference:
  """What samples are compared with.

  Attributes:
    statistics: (mean, covariance) of the features.
    spatial: the same of the spatial features, or None.
    rows: [K, 2048] features for precision, recall and KID, or None.
    about: description; "foreign" if others made it.
    has_images: whether the file has images, arr_0, to compute rows from.
    form: protocol implied by the form of others' files; "" for ours, whose
      `about` has it.
  """

  statistics: tuple[np.ndarray, np.ndarray]
  spatial: tuple[np.ndarray, np.ndarray] | None
  rows: np.ndarray | None
  about: dict
  has_images: bool = False
  form: str = ""

  @functools.cached_property
  def root(self):
    """Factor of the covariance, shared among sets of samples."""
    return scores.factor(self.statistics[1])

  @functools.cached_property
  def spatial_root(self):
    """Factor of the spatial features' covariance."""
    return scores.factor(self.spatial[1])


def from_collected(collected, about):
  """Return the Reference that a `collect.Collected` makes."""
  return Reference(
    scores.mean_and_covariance(collected.features),
    scores.mean_and_covariance(collected.spatial),
    collected.rows,
    about,
  )


def write(path, reference):
  """Write an .npz that `read`, guided-diffusion and pytorch-fid can read."""
  with files.open_atomic(path) as file:
    np.savez(
      file,
      mu=reference.statistics[0],
      sigma=reference.statistics[1],
      mu_s=reference.spatial[0],
      sigma_s=reference.spatial[1],
      features=reference.rows,
      about=json.dumps(reference.about),
    )


def has_statistics(path):
  """Return whether a file is an .npz with statistics."""
  path = epath.Path(path)
  if not path.is_file():
    return False
  try:
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
      return "mu.npy" in archive.namelist()
  except zipfile.BadZipFile:
    return False


def read(path):
  """Read statistics, ours or others', as a Reference.

  The last ones are kept in memory.

  Raises:
    errors.UserError: damaged, or not of Inception's 2048 features.
  """
  path = epath.Path(path)
  if not path.is_file():
    raise errors.UserError(f"{path}: no such file")
  return _read(path, image_sets.stamp(path))


@functools.lru_cache(maxsize=2)
def _read(path, key):
  del key
  try:
    with path.open("rb") as file, np.load(file) as arrays:
      pairs = [_pair(arrays, suffix) for suffix in ("", "_s")]
      rows = arrays.get("features")
      has_images = "arr_0" in arrays
      if "about" in arrays:
        about, form = json.loads(str(arrays["about"])), ""
      else:
        about = _foreign(path, has_images)
        form = "adm" if has_images or pairs[1] else "pytorch_fid"
  except (
    *(ValueError, KeyError, EOFError),
    *(zipfile.BadZipFile, zlib.error),
  ) as error:
    raise errors.UserError(
      f"{path}: not an .npz of statistics ({error})"
    ) from error
  dims = inception.NUM_FEATURES, inception.NUM_SPATIAL
  for pair, dim, name in zip(pairs, dims, ("mu", "mu_s"), strict=True):
    _check(path, name, pair, dim)
  return Reference(*pairs, rows, about, has_images, form)


def _foreign(path, has_images):
  """Return the description of a file without one."""
  with path.open("rb") as file:
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
  about = {"foreign": f"{path.name}, sha256 {sha256[:16]}"}
  if has_images:
    about["image_size"] = list(image_sets.NpzImages(path).shape[:2])
  return about


def _pair(arrays, suffix):
  """Return (mean, covariance), or None if the file has none."""
  if f"mu{suffix}" not in arrays:
    return None
  return tuple(
    np.asarray(arrays[f"{name}{suffix}"], np.float64)
    for name in ("mu", "sigma")
  )


def _check(path, name, pair, dim):
  if pair is None:
    if name == "mu":
      raise errors.UserError(f"{path}: no array mu; not statistics")
    return
  shapes = [array.shape for array in pair]
  if shapes != [(dim,), (dim, dim)]:
    raise errors.UserError(
      f"{path}: {name} and its covariance are {shapes[0]} and {shapes[1]}; "
      f"needed: ({dim},) and ({dim}, {dim})"
    )
  for array in pair:
    if not np.isfinite(array).all():
      raise errors.UserError(
        f"{path}: {name} or its covariance has numbers that are not finite"
      )


def check(about, wanted, name):
  """Refuse statistics of other images, another network or protocol.

  Raises errors.UserError if an entry of `about` is not as wanted; missing
  entries are not checked.
  """
  for field, value in wanted.items():
    found = about.get(field)
    if found is not None and found != value:
      raise errors.UserError(
        f"reference {name} has {field} {found}, not {value}: make one that "
        "fits with --make_reference"
      )


def check_form(reference, protocol, name):
  """Refuse others' statistics whose form implies another protocol."""
  if reference.form not in ("", protocol):
    raise errors.UserError(
      f"reference {name} is of {_FORMS[reference.form]}, not of "
      f"metrics.protocol={protocol}: set --config.metrics.protocol="
      f"{reference.form}, or make one from its images with --make_reference"
    )
