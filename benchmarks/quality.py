"""What a given quality costs: evaluations and seconds, for every sampler.

  python -m benchmarks.quality --workdir=runs/quality --json=FILE

Trains the embedded model where the folder has none, and samples and scores it
as the experiments do. The quality is that of the ancestral sampler at the
largest T with guidance everywhere: the worst of its sampling seeds. A sampler
has reached it at the smallest T whose mean over the seeds is no worse. Every
sampler is tried with every guidance interval, T rising, until it is there. The
same command again goes on; a measurement is kept in the folder.

Evaluations are forward passes per image, both branches counted. Seconds are
those of the fastest seed, compilation left out as far as the first seed pays
for it; they belong to the machine, the evaluations do not.
"""

import argparse
import json
import math
import statistics
import sys
import time

from etils import epath
import jax

from benchmarks import machine
from cfgd import validation
from cfgd.metrics import evaluate
from cfgd.runtime import errors
from cfgd.runtime import files
from cfgd.sampling import generate
from cfgd.sweep import planner
from cfgd.training import loop

_EVERYWHERE = ()
_INTERVALS = (_EVERYWHERE, (-4.0, 4.0), (-2.0, 6.0))
_DISTANCE = "fd_embedded"


def at(config, sampler, interval, num_steps, seed):
  """Return the config of one set of samples."""
  config = config.copy_and_resolve_references()
  config.sampling.sampler, config.sampling.interval = sampler, interval
  config.sampling.T, config.sampling.seed = num_steps, seed
  return config


class Measurements:
  """Distances and seconds of sets of samples, kept in a file."""

  def __init__(self, config, workdir):
    """Read what the folder has."""
    self._config, self._workdir = config, workdir
    self._path = workdir / "quality.json"
    self._known = (
      json.loads(self._path.read_text()) if self._path.exists() else {}
    )

  def measure(self, sampler, interval, num_steps, seed):
    """Return {"distance", "seconds"}; makes the samples if need be."""
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
    """Return what is known of one sampler at one T."""
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


def search(measurements, options):
  """Return (the row that sets the quality, rows by trial, those that reach)."""
  grid = sorted(options.T)
  goal = measurements.row("ancestral", _EVERYWHERE, grid[-1], options.seeds)
  limit = max(goal["distances"])
  rows, reached = [], []
  for sampler in validation.SAMPLERS:
    for interval in _INTERVALS:
      for num_steps in grid:
        row = measurements.row(sampler, interval, num_steps, options.seeds)
        rows.append(row)
        if row["mean"] <= limit:
          reached.append(row)
          break
  return goal, rows, reached


def _parse(argv):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  machine.add_config_arguments(parser, "embedded")
  parser.add_argument("--workdir", required=True)
  parser.add_argument(
    "--T", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256]
  )
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--json", help="file to write")
  return parser.parse_args(argv)


def main(argv):
  """Train, measure, print which reach the quality, write JSON."""
  options = _parse(argv)
  config = machine.load_config(options)
  workdir = epath.Path(options.workdir)
  loop.train(config, workdir)
  evaluate.prepare(config, workdir)
  goal, rows, reached = search(Measurements(config, workdir), options)
  print(f"\nReached {max(goal['distances']):.2f}, the worst seed of the first:")
  for row in reached:
    print(_line(row))
  machine.write_json(
    options.json,
    machine.environment()
    | {"devices": jax.device_count(), "w": config.sampling.w}
    | {"goal": goal, "rows": rows, "reached": reached},
  )


if __name__ == "__main__":
  try:
    main(sys.argv[1:])
  except errors.UserError as error:
    sys.exit(f"error: {error}")
