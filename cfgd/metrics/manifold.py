"""Precision and recall on the device, exactly those of float64.

Distances between tens of thousands of rows are computed in float32 blocks, with
a bound of the rounding error of each. What the bounds leave open, of a few rows
in a thousand, is decided in float64, as `scores` does for all of them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cfgd.metrics import scores

# Distances in a block: 64 MiB of float32, of which a few are there at a time.
_BLOCK = 2**24
# Neighbours whose distance is computed in float64 beyond those asked for.
_SPARE = 4
_GROUP = 64
_UNIT = 2.0**-24  # relative rounding of float32


def neighbour_radii(features, k):
  """Return the squared distance of every row to its k-th nearest other row.

  Args:
    features: [N, D] rows.
    k: which neighbour; the row itself is the 0th.

  Returns:
    [N] float64, as `scores.neighbour_radii`.

  Raises:
    ValueError: see there.
  """
  features = scores.feature_rows("features", features)
  scores.check_neighbour(features, k)
  scale = _scale(features)
  return _radii(_Rows(features, features.mean(axis=0), scale), k) / scale**2


def precision_recall(real, fake, k, *, real_radii=None):
  """Return the improved precision and recall of arXiv:1904.06991.

  Args:
    real: [N, D] features of the reference.
    fake: [M, D] features of the samples.
    k: which neighbour sets the radius; the paper uses 3.
    real_radii: [N] neighbour_radii(real, k); None computes them.

  Returns:
    Precision and recall, as `scores.precision_recall`.

  Raises:
    ValueError: see there.
  """
  real, fake = scores.feature_pair(real, fake)
  for features in (real, fake):
    scores.check_neighbour(features, k)
  scale = min(_scale(real), _scale(fake))
  centre = real.mean(axis=0)
  real, fake = (_Rows(rows, centre, scale) for rows in (real, fake))
  if real_radii is None:
    real_radii = _radii(real, k)
  else:
    real_radii = real_radii * scale**2
  fake_radii = _radii(fake, k)

  real_in, real_open = np.zeros((2, len(real)), bool)
  fake_in, fake_open = np.zeros((2, len(fake)), bool)
  for block in _blocks(len(fake), len(real)):
    of_fake, of_real = _inside(
      fake.block(block),
      real.arrays,
      jnp.asarray(fake_radii[block], jnp.float32),
      jnp.asarray(real_radii, jnp.float32),
    )
    fake_in[block], fake_open[block] = of_fake
    real_in |= np.asarray(of_real[0])
    real_open |= np.asarray(of_real[1])
  _decide(fake_in, fake_open, fake.exact, real.exact, real_radii)
  _decide(real_in, real_open, real.exact, fake.exact, fake_radii)
  return float(fake_in.mean()), float(real_in.mean())


class _Rows:
  """Feature rows for both kinds of arithmetic.

  Attributes:
    exact: [N, D] float64, scaled.
    arrays: on the device, float32: the centred rows [N, D], their squared
      norms [N], and errors [N]: a squared distance in float32 is wrong by at
      most the sum of the errors of its two rows.
  """

  def __init__(self, features, centre, scale):
    self.exact = features * scale
    # Distances do not change, but less cancels in them.
    centred = self.exact - centre * scale
    norms = np.square(centred).sum(axis=1)
    dim = features.shape[1]
    # Of |x|^2 + |y|^2 - 2 x.y, in units of float32: x.y is off by at most
    # D |x| |y| <= D (|x|^2 + |y|^2) / 2 whatever the order of its sum; the
    # rounding of rows, norms, bounds and radii, and the additions, are less
    # than 16 (|x|^2 + |y|^2) together. Below its resolution, float64 says 0.
    # 1e-30 is for numbers that are too small for float32.
    raw = np.square(self.exact).sum(axis=1)
    error = (dim + 16) * _UNIT * norms + 2 * scores.resolution(dim) * raw
    self.arrays = tuple(
      jnp.asarray(array, jnp.float32)
      for array in (centred, norms, error + 1e-30)
    )

  def __len__(self):
    return len(self.exact)

  def block(self, rows):
    """Return the device's arrays of some rows."""
    return tuple(array[rows] for array in self.arrays)


def _scale(features):
  """Return a power of two, which rounds nothing, to keep squares in range."""
  largest = np.abs(features).max()
  return 2.0 ** -np.ceil(np.log2(largest)) if largest else 1.0


def _blocks(count, columns):
  """Yield indices of `count` rows, in arrays of one length.

  The last array is filled up with the last row.
  """
  size = min(count, max(1, _BLOCK // columns))
  for start in range(0, count, size):
    yield np.minimum(np.arange(start, start + size), count - 1)


def _bounds(rows, points):
  """Return lower and upper bounds [B, N] of squared distances."""
  (x, x_norms, x_errors), (y, y_norms, y_errors) = rows, points
  product = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
  distances = x_norms[:, None] + y_norms - 2 * product
  errors = x_errors[:, None] + y_errors
  return distances - errors, distances + errors


@functools.partial(jax.jit, static_argnames="count")
def _nearest(rows, points, count):
  """Return the points of the `count` lowest bounds, and the last bound.

  Returns:
    (indices [B, count], bounds [B]).
  """
  lower, _ = _bounds(rows, points)
  if lower.shape[1] <= count * _GROUP:
    negative, indices = jax.lax.top_k(-lower, count)
    return indices, -negative[:, -1]
  # top_k of a long row is slower than its distances. The lowest are in the
  # groups of lowest minimum: each group below an entry's has one below it.
  fill = ((0, 0), (0, -lower.shape[1] % _GROUP))
  groups = jnp.pad(lower, fill, constant_values=jnp.inf)
  groups = groups.reshape(len(lower), -1, _GROUP)
  _, best = jax.lax.top_k(-groups.min(axis=2), count)  # [B, count]
  chosen = jnp.take_along_axis(groups, best[:, :, None], axis=1)
  negative, place = jax.lax.top_k(-chosen.reshape(len(lower), -1), count)
  group = jnp.take_along_axis(best, place // _GROUP, axis=1)
  return group * _GROUP + place % _GROUP, -negative[:, -1]


@jax.jit
def _inside(rows, points, row_radii, point_radii):
  """Say which rows and points are in a ball of the other set.

  Returns:
    (surely [B], perhaps [B]) of the rows, and the same [N] of the points.
  """
  lower, upper = _bounds(rows, points)
  return tuple(
    tuple((bound <= radii).any(axis=axis) for bound in (upper, lower))
    for radii, axis in ((point_radii, 1), (row_radii[:, None], 0))
  )


def _radii(rows, k):
  count = min(k + 1 + _SPARE, len(rows))
  radii = np.empty(len(rows))
  for block in _blocks(len(rows), len(rows)):
    indices, last = map(
      np.asarray, _nearest(rows.block(block), rows.arrays, count)
    )
    distances = _paired_distances(rows.exact, block, indices)
    radii[block] = np.partition(distances, k, axis=1)[:, k]
    # What was not looked at is at least as far as the last bound.
    open_rows = np.unique(block[last <= radii[block]])
    if count < len(rows) and len(open_rows):
      distances = scores.squared_distances(rows.exact[open_rows], rows.exact)
      radii[open_rows] = np.partition(distances, k, axis=1)[:, k]
  return radii


def _paired_distances(features, rows, points):
  """Return the squared distances [B, K] of rows [B] to their points [B, K]."""
  norms = np.square(features[rows]).sum(axis=1)
  distances = np.empty(points.shape)
  for column, others in enumerate(points.T):
    difference = features[rows] - features[others]
    square = np.einsum("ij,ij->i", difference, difference)
    both = norms + np.square(features[others]).sum(axis=1)
    square[square <= scores.resolution(features.shape[1]) * both] = 0.0
    distances[:, column] = square
  return distances


def _decide(surely, perhaps, rows, points, radii):
  """Fill in, in float64, which rows in doubt are in a ball of the points."""
  left = np.flatnonzero(perhaps & ~surely)
  for block in np.array_split(left, 1 + len(left) * len(points) // _BLOCK):
    distances = scores.squared_distances(rows[block], points)
    surely[block] = (distances <= radii).any(axis=1)
