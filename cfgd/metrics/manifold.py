"""Precision and recall on the device, exactly as in float64.

Distances between tens of thousands of rows are computed in float32 blocks, with
a bound of the rounding error of each. The few rows in a thousand that the
bounds leave undecided are decided in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cfgd.metrics import scores

# Distances in a block: 64 MiB of float32, a few blocks at a time.
_BLOCK = 2**24
# Neighbours computed in float64 beyond those asked for.
_SPARE = 4
_GROUP = 64
_UNIT = 2.0**-24  # relative rounding of float32


def neighbour_radii(features, k):
  """Return [N] squared distances of each row to its k-th nearest other row.

  They are float64, and 0 where a row of the features [N, D] has k duplicates.
  """
  features = scores.feature_rows("features", features)
  _check_neighbour(features, k)
  scale = _scale(features)
  return _radii(_Rows(features, features.mean(axis=0), scale), k) / scale**2


def precision_recall(real, fake, k, *, real_radii=None):
  """Return the improved precision and recall of arXiv:1904.06991.

  Precision is the share of fake rows inside the ball of some real row, recall
  the share of real rows inside the ball of some fake row. A ball reaches to the
  k-th neighbour within its own set, boundary included.

  Args:
    real: [N, D] features of the reference.
    fake: [M, D] features of the samples.
    k: which neighbour sets the radius; the paper uses 3.
    real_radii: [N] neighbour_radii(real, k), to share among many sets of fakes.
  """
  real, fake = scores.feature_pair(real, fake)
  for features in (real, fake):
    _check_neighbour(features, k)
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


def _check_neighbour(features, k):
  if not 1 <= k < len(features):
    raise ValueError(
      f"k={k}: must be from 1 to {len(features) - 1}, as there are "
      f"{len(features)} rows"
    )


def squared_distances(rows, points):
  """Return squared distances [B, N] of rows [B, D] to points [N, D]."""
  norms = np.square(rows).sum(axis=1)[:, None] + np.square(points).sum(axis=1)
  distances = norms - 2 * (rows @ points.T)
  distances[distances <= _resolution(rows.shape[1]) * norms] = 0.0
  return distances


def _resolution(dim):
  """Return the part of |x|^2 + |y|^2 below which |x - y|^2 counts as 0.

  The expanded square is off by up to about dim eps (|x|^2 + |y|^2). Rows closer
  than that are duplicates, and `<=` must see their radius as 0.
  """
  return (dim + 4) * np.finfo(np.float64).eps


class _Rows:
  """Feature rows in float64 and, on the device, in float32.

  Attributes:
    exact: [N, D] float64, scaled.
    arrays: float32 centred rows [N, D], their squared norms [N], and errors
      [N]: a float32 squared distance is off by at most the sum of the errors
      of its two rows.
  """

  def __init__(self, features, centre, scale):
    self.exact = features * scale
    # Centring leaves the distances alone and reduces cancellation.
    centred = self.exact - centre * scale
    norms = np.square(centred).sum(axis=1)
    dim = features.shape[1]
    # Of |x|^2 + |y|^2 - 2 x.y, in units of float32: x.y is off by at most
    # D |x| |y| <= D (|x|^2 + |y|^2) / 2 whatever the order of its sum; the
    # rounding of rows, norms, bounds and radii, and the additions, are less
    # than 16 (|x|^2 + |y|^2) together. Below its resolution float64 gives 0.
    # 1e-30 covers numbers too small for float32.
    raw = np.square(self.exact).sum(axis=1)
    error = (dim + 16) * _UNIT * norms + 2 * _resolution(dim) * raw
    self.arrays = tuple(
      jnp.asarray(array, jnp.float32)
      for array in (centred, norms, error + 1e-30)
    )

  def __len__(self):
    return len(self.exact)

  def block(self, rows):
    """Return the device arrays of some rows."""
    return tuple(array[rows] for array in self.arrays)


def _scale(features):
  """Return a power of two, free of rounding, to keep squares in range."""
  largest = np.abs(features).max()
  return 2.0 ** -np.ceil(np.log2(largest)) if largest else 1.0


def _blocks(count, columns):
  """Yield the indices of `count` rows in arrays of one length, padded."""
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
  """Return indices [B, count] of the lowest bounds, and the last bound [B]."""
  lower, _ = _bounds(rows, points)
  if lower.shape[1] <= count * _GROUP:
    negative, indices = jax.lax.top_k(-lower, count)
    return indices, -negative[:, -1]
  # top_k of a long row is slower than its distances. The lowest entries are in
  # the groups with the lowest minima: every group with a lower minimum than an
  # entry's has a lower entry.
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
  """Return which rows and points are in a ball of the other set.

  Returns:
    (certain [B], possible [B]) of the rows, and the same [N] of the points.
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
    # Rows not among the nearest are at least as far as the last bound.
    open_rows = np.unique(block[last <= radii[block]])
    if count < len(rows) and len(open_rows):
      distances = squared_distances(rows.exact[open_rows], rows.exact)
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
    square[square <= _resolution(features.shape[1]) * both] = 0.0
    distances[:, column] = square
  return distances


def _decide(certain, possible, rows, points, radii):
  """Decide in float64 which doubtful rows are in a ball of the points."""
  left = np.flatnonzero(possible & ~certain)
  for block in np.array_split(left, 1 + len(left) * len(points) // _BLOCK):
    distances = squared_distances(rows[block], points)
    certain[block] = (distances <= radii).any(axis=1)
