"""Into which parts samples are split for the Inception score.

The score of few rows is too high, and more so with more classes, so scores are
comparable at one number of rows per split alone.
"""

import numpy as np

from cfgd.metrics import scores

# guided-diffusion's evaluator: parts of so many rows, the last one shorter.
ADM_ROWS = 5_000
# Improved GAN's ten splits, where each of them has at least a thousand rows.
NUM_SPLITS = 10
MIN_SAMPLES = 10_000


def edges(count, num_splits, protocol=""):
  """Return where the splits of `count` rows begin and end.

  Args:
    count: number of rows.
    num_splits: metrics.num_splits: that many splits, equal but for rounding, or
      0 for the protocol's: adm has one for every 5,000 rows begun, anything
      else 10, or 1 below 10,000 rows.
    protocol: of Inception; "" for another network.

  Returns:
    [S + 1] edges: split i has the rows edges[i] to edges[i + 1].
  """
  if num_splits == 0 and protocol == "adm":
    return [*range(0, count, ADM_ROWS), count]
  if num_splits == 0:
    num_splits = NUM_SPLITS if count >= MIN_SAMPLES else 1
  return scores.even_edges(count, num_splits)


def about(edges):
  """Return what a result's provenance says of the splits, as a dict.

  "num_splits", and "split_rows", the rows of all splits but the last, where
  they are not as equal as they can be.
  """
  count, num_splits = edges[-1], len(edges) - 1
  if edges == scores.even_edges(count, num_splits):
    return {"num_splits": num_splits}
  return {"num_splits": num_splits, "split_rows": edges[1]}


def inception_score(name, probabilities, edges):
  """Return the score over a seeded permutation of the rows, as metrics.

  Args:
    name: of the metric.
    probabilities: [N, K] class probabilities.
    edges: see `edges`.

  Returns:
    {name: mean over the splits, name_std: their spread}; one split has none.
  """
  mean, std = scores.inception_score(
    probabilities, edges, np.random.default_rng(0)
  )
  return {name: mean} | ({f"{name}_std": std} if len(edges) > 2 else {})
