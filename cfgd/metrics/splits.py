"""The splits of samples for the Inception score.

The score is biased upwards by few rows, the more so with many classes, so only
scores with equal rows per split are comparable.
"""

import numpy as np

from cfgd.metrics import scores

# guided-diffusion's evaluator: this many rows per split, the last one shorter.
ADM_ROWS = 5_000
# improved-gan's ten splits, where each has at least a thousand rows.
NUM_SPLITS = 10
MIN_SAMPLES = 10_000


def edges(count, num_splits, protocol=""):
  """Return the [S + 1] edges of the splits of `count` rows.

  Args:
    count: number of rows.
    num_splits: metrics.num_splits: number of equal splits, or 0 for the
      protocol's: 5,000 rows each for adm, otherwise 10 splits, or 1 below
      10,000 rows.
    protocol: of Inception; "" for another network.
  """
  if num_splits == 0 and protocol == "adm":
    return [*range(0, count, ADM_ROWS), count]
  if num_splits == 0:
    num_splits = NUM_SPLITS if count >= MIN_SAMPLES else 1
  return scores.even_edges(count, num_splits)


def about(edges):
  """Return what a result's provenance records of the splits.

  "num_splits", and "split_rows" where the splits are not equal.
  """
  count, num_splits = edges[-1], len(edges) - 1
  if edges == scores.even_edges(count, num_splits):
    return {"num_splits": num_splits}
  return {"num_splits": num_splits, "split_rows": edges[1]}


def inception_score(name, probabilities, edges):
  """Return {name: mean, name_std: spread} of the score over the splits.

  The rows are permuted with a fixed seed. A single split has no spread.
  """
  mean, std = scores.inception_score(
    probabilities, edges, np.random.default_rng(0)
  )
  return {name: mean} | ({f"{name}_std": std} if len(edges) > 2 else {})
