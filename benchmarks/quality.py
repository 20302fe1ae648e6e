"""What a given quality costs: evaluations and seconds, for every sampler.

  python -m benchmarks.quality --workdir=runs/quality --json=FILE

Trains the embedded model if the folder has none, then samples and scores it as
the experiments do. The target is the quality of the ancestral sampler at the
largest T with guidance everywhere, in its worst sampling seed. A sampler
reaches it at the smallest T whose mean over the seeds is no worse. Every
sampler is tried with every guidance interval at rising T until it reaches the
target. Measurements are kept in the folder, so the same command resumes.

Evaluations are forward passes per image, both branches counted. Seconds are
those of the fastest seed, as the first one may include compilation; they depend
on the machine, the evaluations do not.
"""

import json
import math
import statistics
import time

from absl import flags
from etils import epath

from benchmarks import machine
from cfgd import validation
from cfgd.metrics import evaluate
from cfgd.runtime import files
from cfgd.sampling import generate
from cfgd.sweep import planner
from cfgd.training import loop
from experiments import launcher

_EVERYWHERE = ()
_INTERVALS = (_EVERYWHERE, (-4.0, 4.0), (-2.0, 6.0))
_DISTANCE = "fd_embedded"

_CONFIG = launcher.define_config("embedded.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_STEPS = flags.DEFINE_list("T", [8, 16, 32, 64, 128, 256], "T to try.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Sampling seeds.")
flags.mark_flag_as_required("workdir")


def at(config, sampler, interval, num_steps, seed):
  """Return the config of one set of samples."""
  config = config.copy_and_resolve_references()
  config.sampling.update(
    sampler=sampler, interval=interval, T=num_steps, seed=seed
  )
  return config


class Measurements:
  """Distances and seconds of sets of samples, kept in a file."""

  def __init__(self, config, workdir):
    """Read the measurements that the folder has."""
    self._config, self._workdir = config, workdir
    self._path = workdir / "quality.json"
    self._known = (
      json.loads(self._path.read_text()) if self._path.exists() else {}
    )

  def measure(self, sampler, interval, num_steps, seed):
    """Return {"distance", "seconds"}, sampling what is missing."""
    config = at(self._config, sampler, interval, num_steps, seed)
    checkpoint = self._config.train.steps
    what = generate.settings(config, self._workdir, checkpoint, None)
    key = generate.folder_of(self._workdir, what).name
    key = f"{key}_{config.sampling.num_samples}"
    if key not in self._known:
      start = time.perf_counter()
      samples = generate.generate(config, self._workdir)
      seconds = time.perf_counter() - start
      scored = evaluate.evaluate(config, self._workdir, samples)
      self._known[key] = {
        "distance": scored["metrics"][_DISTANCE],
        "seconds": seconds,
      }
      files.write_atomic(self._path, json.dumps(self._known, indent=2) + "\n")
    return self._known[key]

  def row(self, sampler, interval, num_steps, seeds):
    """Measure one sampler at one T; returns a row of the table."""
    sets = [
      self.measure(sampler, interval, num_steps, seed) for seed in range(seeds)
    ]
    distances = [one["distance"] for one in sets]
    config = at(self._config, sampler, interval, num_steps, 0)
    row = {
      "sampler": sampler,
      "interval": list(interval),
      "T": num_steps,
      "evaluations": planner.evaluations(config, 0.0),
      "seconds": min(one["seconds"] for one in sets),
      "distances": distances,
      "mean": statistics.mean(distances),
    }
    print(_line(row), flush=True)
    return row


def _line(row):
  low, *high = row["interval"] or [-math.inf, math.inf]
  return (
    f"{row['sampler']:12} {low:5g} to {high[0]:<5g} T={row['T']:<4} "
    f"{row['evaluations']:4} evaluations {row['seconds']:7.1f} s  {_DISTANCE} "
    f"{row['mean']:.2f} ({min(row['distances']):.2f} to "
    f"{max(row['distances']):.2f})"
  )


def search(measurements, grid, seeds):
  """Return (row that sets the target, all rows, rows that reach it)."""
  goal = measurements.row("ancestral", _EVERYWHERE, grid[-1], seeds)
  limit = max(goal["distances"])
  rows, reached = [], []
  for sampler in validation.SAMPLERS:
    for interval in _INTERVALS:
      for num_steps in grid:
        row = measurements.row(sampler, interval, num_steps, seeds)
        rows.append(row)
        if row["mean"] <= limit:
          reached.append(row)
          break
  return goal, rows, reached


def main():
  """Train, measure, print which samplers reach the target, write JSON."""
  config = _CONFIG.value
  workdir = epath.Path(_WORKDIR.value)
  loop.train(config, workdir)
  evaluate.prepare(config, workdir)
  goal, rows, reached = search(
    Measurements(config, workdir), sorted(map(int, _STEPS.value)), _SEEDS.value
  )
  print(f"\nReached {max(goal['distances']):.2f}, the target's worst seed:")
  for row in reached:
    print(_line(row))
  machine.write(
    machine.environment()
    | {"w": config.sampling.w}
    | {"goal": goal, "rows": rows, "reached": reached}
  )


if __name__ == "__main__":
  launcher.run(main)
