"""Scoring: features per second, the Frechet distance, memory.

  python -m benchmarks.evaluate [--peer=DIR] [--memory=50000] [--json=FILE]

--peer is a checkout of pytorch-fid (its imports, torch and torchvision, must
work): its network gets the same random weights and images, and the two are
timed in turn in one process. On a CPU there is one device per core, as in `make
demo`. --memory runs everything but the network at that many images and says
what it took; precision, recall and KID then take minutes.
"""

import argparse
import json
import os
import pathlib
import platform
import resource
import statistics
import sys
import tempfile
import time

if "--help" not in sys.argv:  # before JAX is imported
  os.environ.setdefault(
    "XLA_FLAGS", f"--xla_force_host_platform_device_count={os.cpu_count()}"
  )

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from cfgd.convert import inception as inception_weights
from cfgd.metrics import collect
from cfgd.metrics import extract
from cfgd.metrics import manifold
from cfgd.metrics import scores
from cfgd.models import inception

_GIB = 2**30


def random_state():
  """Return a state dict of Inception's names and shapes, of sane sizes."""
  rng = np.random.default_rng(0)
  state = {}
  for key, shape in inception_weights.torch_shapes().items():
    if len(shape) > 1:
      width = np.sqrt(2 / np.prod(shape[1:]))
      state[key] = np.float32(rng.standard_normal(shape) * width)
    else:
      state[key] = np.float32(rng.uniform(0.5, 1.5, shape))
  return state


def _ours(state, images, batch):
  """Return a function that computes our features of the images."""
  scorer = inception.scorer("pytorch_fid")
  params = collect.distributed.replicate_locally(
    inception_weights.convert(state, path="random weights")
  )

  def run():
    parts = extract.batches(scorer, params, images, batch_size=batch)
    return np.concatenate([features for features, *_ in parts])

  return run


def _peer(folder, state, images, batch):
  """Return the same of pytorch-fid."""
  sys.path.insert(0, str(pathlib.Path(folder) / "src"))
  import pytorch_fid.inception
  import torch

  loaded = {key: torch.from_numpy(value) for key, value in state.items()}
  for key in state:
    if key.endswith("running_var"):
      counter = key.replace("running_var", "num_batches_tracked")
      loaded[counter] = torch.zeros((), dtype=torch.int64)
  pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: loaded
  network = pytorch_fid.inception.InceptionV3().eval()

  @torch.no_grad()
  def run():
    parts = []
    for start in range(0, len(images), batch):
      x = torch.from_numpy(images[start : start + batch].transpose(0, 3, 1, 2))
      parts.append(network(x.float() / 255)[0].flatten(1).numpy())
    return np.concatenate(parts)

  return run


def _alternate(runs, rounds):
  """Return {name: [seconds]} of calls in turn, after one call of each."""
  results = {name: run() for name, run in runs.items()}
  seconds = {name: [] for name in runs}
  for _ in range(rounds):
    for name, run in runs.items():
      begin = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - begin)
  return results, seconds


def features_per_second(options):
  """Time feature extraction, ours and the peer's in turn."""
  rng = np.random.default_rng(0)
  shape = (options.images, options.size, options.size, 3)
  images = rng.integers(0, 256, shape).astype(np.uint8)
  state = random_state()
  runs = {"cfgd": _ours(state, images, options.batch)}
  if options.peer:
    runs["pytorch-fid"] = _peer(options.peer, state, images, options.peer_batch)
  results, seconds = _alternate(runs, options.rounds)
  report = {
    name: options.images / statistics.median(times)
    for name, times in seconds.items()
  }
  for name, rate in report.items():
    spread = [round(options.images / one, 2) for one in seconds[name]]
    print(f"  {name}: {rate:.2f} images/s, rounds {spread}")
  if options.peer:
    report["ratio"] = report["cfgd"] / report["pytorch-fid"]
    theirs = results["pytorch-fid"]
    report["max_deviation_over_rms"] = float(
      np.abs(results["cfgd"] - theirs).max() / np.sqrt((theirs**2).mean())
    )
    print(
      f"  ratio {report['ratio']:.2f}, largest deviation of a feature "
      f"{report['max_deviation_over_rms']:.1e} of their root mean square"
    )
  return report


def _by_sqrtm(mean_1, cov_1, mean_2, cov_2):
  root = scipy.linalg.sqrtm(cov_1 @ cov_2)
  delta = mean_1 - mean_2
  return float(
    delta @ delta + np.trace(cov_1) + np.trace(cov_2) - 2 * np.trace(root).real
  )


def frechet_seconds(options):
  """Time the Frechet distance of 2048 features, and SciPy's sqrtm."""
  rng = np.random.default_rng(0)
  dim = inception.NUM_FEATURES
  sets = [
    scores.moments(rng.gamma(2, shift, (2 * dim, dim))) for shift in (1.0, 1.1)
  ]
  both = [x for rows in sets for x in scores.mean_and_covariance(rows)]
  root = scores.factor(both[1])
  runs = {
    "cfgd": lambda: scores.frechet_distance(*both),
    "cfgd, reference's root cached": lambda: scores.frechet_distance(
      *both, root_1=root
    ),
    "scipy.linalg.sqrtm": lambda: _by_sqrtm(*both),
  }
  results, seconds = _alternate(runs, options.rounds)
  report = {name: statistics.median(times) for name, times in seconds.items()}
  for name, median in report.items():
    print(f"  {name}: {median:.2f} s, distance {results[name]:.9g}")
  slow = report["scipy.linalg.sqrtm"]
  for name in list(report)[:2]:
    print(f"  {name}: {slow / report[name]:.1f} times as fast")
  return report


class _RandomImages:
  """Images that need no memory."""

  name, shape = "random images", (64, 64, 3)

  def __init__(self, count):
    self._count = count

  def __len__(self):
    return self._count

  def __getitem__(self, rows):
    start, stop, _ = rows.indices(self._count)
    rng = np.random.default_rng(start)
    return rng.integers(0, 256, (stop - start, *self.shape)).astype(np.uint8)


def _cheap_scorer(params, images):
  """Stand in for Inception with as many outputs."""
  x = images[:, ::8, ::8].reshape(len(images), -1) / 255.0 - 0.5
  parts = jnp.split(
    x @ params,
    (inception.NUM_FEATURES, inception.NUM_FEATURES + inception.NUM_CLASSES),
    axis=-1,
  )
  features, logits, spatial = parts
  return jax.nn.relu(features), jax.nn.softmax(logits), spatial


def _peak():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB


def memory(options):
  """Collect and score many images, and report the process's peaks."""
  count = options.memory
  width = inception.NUM_FEATURES + inception.NUM_CLASSES + inception.NUM_SPATIAL
  params = np.float32(np.random.default_rng(0).normal(size=(192, width)))
  report = {"images": count, "start_gib": _peak()}
  with tempfile.TemporaryDirectory() as folder:
    collected = collect.collect(
      folder,
      _cheap_scorer,
      params,
      _RandomImages(count),
      kept=np.ones(count, bool),
      chunk_size=1024,
      batch_size=64,
    )
    report["disk_gib"] = (
      sum(path.stat().st_size for path in pathlib.Path(folder).iterdir()) / _GIB
    )
  report["collected_gib"] = _peak()
  for moments in (collected.features, collected.spatial):
    statistics_ = scores.mean_and_covariance(moments)
    scores.frechet_distance(*statistics_, *statistics_)
  scores.inception_score(collected.probabilities, 10, np.random.default_rng(0))
  report["fid_sfid_is_gib"] = _peak()
  print(f"  {report}", flush=True)
  real = collected.rows[:10_000]
  begin = time.perf_counter()
  manifold.precision_recall(real, collected.rows, 3)
  report["precision_recall_gib"] = _peak()
  report["precision_recall_seconds"] = time.perf_counter() - begin
  scores.kernel_distance(real, collected.rows)
  report["kid_gib"] = _peak()
  report["all_seconds"] = time.perf_counter() - begin
  print(f"  {report}")
  return report


def _parse(argv):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--peer", help="checkout of pytorch-fid")
  parser.add_argument("--images", type=int, default=128)
  parser.add_argument("--size", type=int, default=64, help="pixels per side")
  parser.add_argument("--batch", type=int, default=32, help="per device")
  parser.add_argument("--peer_batch", type=int, default=50)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--memory", type=int, default=0, help="images")
  parser.add_argument("--only_memory", action="store_true")
  parser.add_argument("--json", help="file to write")
  return parser.parse_args(argv)


def main(argv):
  """Print the figures and write them as JSON if asked to."""
  options = _parse(argv)
  report = {
    "devices": f"{jax.local_device_count()} {jax.default_backend()}",
    "machine": platform.machine(),
    "cores": os.cpu_count(),
    "jax": jax.__version__,
  }
  print(", ".join(f"{key} {value}" for key, value in report.items()))
  if not options.only_memory:
    print(f"features of {options.images} images, {options.size} pixels:")
    report["features"] = features_per_second(options)
    print("Frechet distance of 2048 features:")
    report["frechet"] = frechet_seconds(options)
  if options.memory:
    print("peak memory without the network:")
    report["memory"] = memory(options)
  if options.json:
    pathlib.Path(options.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
  main(sys.argv[1:])
