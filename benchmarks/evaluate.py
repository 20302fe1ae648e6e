"""Scoring: features per second, the Frechet distance, memory.

  python -m benchmarks.evaluate [--peer=DIR] [--memory=50000] [--json=FILE]

--peer is a checkout of pytorch-fid (torch and torchvision must be installed):
its network gets the same random weights and images and takes turns with ours in
one process. On a CPU there is one device per core, unless XLA_FLAGS is set.
--memory runs everything but the network on that many images and prints the
process's peaks; precision, recall and KID then take minutes. No config is
involved.
"""

import os
import pathlib
import resource
import statistics
import sys
import tempfile
import time

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from benchmarks import machine
from cfgd.convert import inception as inception_weights
from cfgd.metrics import collect
from cfgd.metrics import extract
from cfgd.metrics import manifold
from cfgd.metrics import scores
from cfgd.models import inception
from cfgd.runtime import distributed
from experiments import launcher

_PEER = flags.DEFINE_string("peer", None, "Checkout of pytorch-fid.")
_IMAGES = flags.DEFINE_integer("images", 128, "Images to take features of.")
_SIZE = flags.DEFINE_integer("size", 64, "Pixels per side.")
_BATCH = flags.DEFINE_integer("batch", 32, "Images per device.")
_PEER_BATCH = flags.DEFINE_integer("peer_batch", 50, "Images of the peer's.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Turns.")
_MEMORY = flags.DEFINE_integer("memory", 0, "Images to measure memory with.")
_ONLY_MEMORY = flags.DEFINE_boolean("only_memory", False, "Nothing else.")


def random_state():
  """Return a random state dict of Inception whose activations stay sane."""
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
  params = distributed.replicate_locally(
    inception_weights.convert(state, path="random weights")
  )

  def run():
    parts = extract.batches(scorer, params, images, batch_size=batch)
    return np.concatenate([features for features, *_ in parts])

  return run


def _peer(folder, state, images, batch):
  """Return a function that computes pytorch-fid's features of the images."""
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


def features_per_second():
  """Time feature extraction, ours and the peer's in turn."""
  rng = np.random.default_rng(0)
  number, size = _IMAGES.value, _SIZE.value
  images = rng.integers(0, 256, (number, size, size, 3)).astype(np.uint8)
  state = random_state()
  runs = {"cfgd": _ours(state, images, _BATCH.value)}
  if _PEER.value:
    runs["pytorch-fid"] = _peer(_PEER.value, state, images, _PEER_BATCH.value)
  timings = machine.in_turns(runs, _REPEATS.value)
  report = {}
  for name, timing in timings.items():
    report[name] = number / statistics.median(timing.seconds)
    rounds = [round(number / one, 2) for one in timing.seconds]
    print(f"  {name}: {report[name]:.2f} images/s, rounds {rounds}")
  if _PEER.value:
    theirs = timings["pytorch-fid"].result
    apart = np.abs(timings["cfgd"].result - theirs).max()
    report["ratio"] = report["cfgd"] / report["pytorch-fid"]
    report["max_deviation_over_rms"] = float(
      apart / np.sqrt((theirs**2).mean())
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


def frechet_seconds():
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
  timings = machine.in_turns(runs, _REPEATS.value)
  report = {
    name: statistics.median(timing.seconds) for name, timing in timings.items()
  }
  for name, median in report.items():
    print(f"  {name}: {median:.2f} s, distance {timings[name].result:.9g}")
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
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / machine.GIB


def memory(count):
  """Collect and score many images, and report the process's peaks."""
  width = inception.NUM_FEATURES + inception.NUM_CLASSES + inception.NUM_SPATIAL
  params = np.float32(np.random.default_rng(0).normal(size=(192, width)))
  report = {"images": count, "start_gib": _peak()}
  with tempfile.TemporaryDirectory() as folder:
    collect.collect(
      folder,
      _cheap_scorer,
      params,
      _RandomImages(count),
      kept=np.ones(count, bool),
      chunk_size=1024,
      batch_size=64,
    )
    collected = collect.assemble(folder, count, 1024)
    sizes = [path.stat().st_size for path in pathlib.Path(folder).iterdir()]
    report["disk_gib"] = sum(sizes) / machine.GIB
  report["collected_gib"] = _peak()
  for moments in (collected.features, collected.spatial):
    found = scores.mean_and_covariance(moments)
    scores.frechet_distance(*found, *found)
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


def main():
  """Measure, print, write JSON."""
  report = machine.environment()
  print(", ".join(f"{key} {value}" for key, value in report.items()))
  if not _ONLY_MEMORY.value:
    print(f"features of {_IMAGES.value} images, {_SIZE.value} pixels:")
    report["features"] = features_per_second()
    print("Frechet distance of 2048 features:")
    report["frechet"] = frechet_seconds()
  if _MEMORY.value:
    print("peak memory without the network:")
    report["memory"] = memory(_MEMORY.value)
  machine.write(report)


if __name__ == "__main__":
  # One device per core.
  os.environ.setdefault(
    "XLA_FLAGS", f"--xla_force_host_platform_device_count={os.cpu_count()}"
  )
  launcher.run(main)
