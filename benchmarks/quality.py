"""What a given quality costs in network evaluations, for samplers and grids.

  python -m benchmarks.quality --workdir=runs/quality --json=FILE --picture=FILE

Trains the embedded model with several seeds, then samples and scores every
sampler on every log-SNR grid at each T and w with several sampling seeds, as
the experiments do. Curves over w are compared by their best points, the lowest
mean over all seeds; one is followed from the smallest w until its mean is half
as high again as its lowest.

Intervals are Student's at 95% over the training seeds, each with its mean over
the sampling seeds. Measurements are kept in the folder: the same command
resumes, one that asks for more measures what is missing, and --known measures
nothing and reports what there is.
"""

import json
import math
import statistics
import time

from absl import flags
from etils import epath
from matplotlib import figure
from matplotlib import ticker
from scipy import stats

from benchmarks import machine
from cfgd import diffusion
from cfgd import identity
from cfgd import methods
from cfgd import validation
from cfgd.metrics import evaluate
from cfgd.report import plots
from cfgd.runtime import errors
from cfgd.runtime import files
from cfgd.sampling import generate
from cfgd.sweep import planner
from cfgd.training import loop
from experiments import launcher

_CONFIDENCE = 0.95
_RISEN = 1.5
_LONG = 64
_REFERENCE = "ancestral/uniform_u"
_PAIRS = [
  f"{sampler}/{grid}"
  for sampler, row in diffusion.SAMPLERS.items()
  for grid, levels in methods.GRIDS.items()
  if not row.without_score and not levels.timesteps
]

_CONFIG = launcher.define_config("embedded.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.")
_WHAT = flags.DEFINE_list("pairs", _PAIRS, "sampler/grid, ... to measure.")
_STEPS = flags.DEFINE_list("T", [6, 8, 12, 16, 24, 32, 64, 256], "T to try.")
_STRENGTHS = flags.DEFINE_list("w", [0, 0.1, 0.3, 0.5, 1, 2, 4], "w to try.")
_MODELS = flags.DEFINE_integer("models", 3, "Training seeds.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Sampling seeds.", lower_bound=1)
_LONG_SEEDS = flags.DEFINE_integer(
  "long_seeds", 3, f"Sampling seeds where T >= {_LONG}.", lower_bound=1
)
_KNOWN = flags.DEFINE_bool("known", False, "Report what the folder has.")
_PICTURE = flags.DEFINE_string("picture", None, "PNG of distance over T.")
flags.mark_flag_as_required("workdir")


class Measurements:
  """Scores of sets of samples, kept in a file."""

  def __init__(self, config, workdir):
    """Read the measurements that the folder has."""
    self._config, self._workdir = config, workdir
    self._path = workdir / "quality.json"
    self._known = (
      json.loads(self._path.read_text()) if self._path.exists() else {}
    )

  def config(self, model, **sampling):
    """Return the config of a training seed and settings of sampling."""
    config = self._config.copy_and_resolve_references()
    config.seed = model
    config.sampling.update(sampling)
    config.metrics.feature_dir = str(self._workdir / "feature_net")
    return config

  def measure(self, model, **sampling):
    """Return the metrics of one set of samples, making what is missing.

    With --known, None is returned for what is missing.
    """
    config = self.config(model, **sampling)
    key = _key(config, sampling)
    if key not in self._known and not _KNOWN.value:
      workdir = self._workdir / f"model{model}"
      loop.train(config, workdir)
      evaluate.prepare(config, workdir)
      start = time.perf_counter()
      samples = generate.generate(config, workdir)
      seconds = time.perf_counter() - start
      scored = evaluate.evaluate(config, workdir, samples)
      self._known[key] = scored["metrics"] | {"seconds": seconds}
      files.write_atomic(self._path, json.dumps(self._known, indent=2) + "\n")
    return self._known.get(key)


def _key(config, sampling):
  """Name a set of samples, for readers and by all that it depends on."""
  what = identity.of_sampling(config)
  what |= identity.flatten(identity.of_model(config))
  what |= {"train.steps": config.train.steps}
  names = " ".join(f"{name}={value}" for name, value in sampling.items())
  digest = identity.settings_digest(what)
  return f"{names} model={config.seed} {digest}"


def _row(measurements, **sampling):
  """Return the means over all seeds at one strength, None without them."""
  seeds = _LONG_SEEDS.value if sampling["T"] >= _LONG else _SEEDS.value
  sets = [
    [measurements.measure(model, **sampling, seed=k) for k in range(seeds)]
    for model in range(_MODELS.value)
  ]
  sets = [[one for one in own if one] for own in sets]
  if not all(sets):
    return None
  config = measurements.config(0, **sampling)
  means = {
    name: [statistics.mean(one[name] for one in own) for own in sets]
    for name in (config.sweep.distance, "recall")
  }
  row = sampling | {
    "evaluations": float(planner.evaluations(config, 0.0)),
    "models": len(sets),
    "seeds": min(map(len, sets)),
    "distances": [[one[config.sweep.distance] for one in own] for own in sets],
    "seconds": min(one["seconds"] for own in sets for one in own),
  }
  row |= {name: statistics.mean(values) for name, values in means.items()}
  row["interval"] = _interval(means[config.sweep.distance])
  print(_text(row, config.sweep.distance), flush=True)
  return row


def _interval(values):
  """Return Student's interval of the mean of a value per training seed."""
  count, mean = len(values), statistics.mean(values)
  if count < 2:
    return [-math.inf, math.inf]
  quantile = stats.t.ppf(0.5 + _CONFIDENCE / 2, count - 1)
  half = quantile * statistics.stdev(values) / math.sqrt(count)
  return [mean - half, mean + half]


def _text(row, distance):
  low, high = row["interval"]
  return (
    f"{row['sampler'] + '/' + row['grid']:24} T={row['T']:<4} w={row['w']:<4g} "
    f"{row['evaluations']:4g} evaluations  {distance} {row[distance]:6.2f} "
    f"({low:.2f} to {high:.2f})  recall {row['recall']:.2f}  "
    f"{row['models']}x{row['seeds']} seeds"
  )


def best_of_curve(measurements, distance, strengths, **at):
  """Return the row of the best w, the smallest w first; None without any."""
  rows = []
  for w in strengths:
    row = _row(measurements, **at, w=w)
    if not row:
      continue
    rows.append(row)
    lowest = min(row[distance] for row in rows)
    if rows[-1][distance] > _RISEN * lowest:
      break
  return min(rows, key=lambda row: row[distance], default=None)


def _beside(rows):
  """Add to each row by how much it is above the reference, seed by seed.

  Only by the sampling seeds that both have: samples of one seed start from the
  same noise.
  """
  reference = max(
    (row for row in rows if f"{row['sampler']}/{row['grid']}" == _REFERENCE),
    key=lambda row: row["T"],
    default=None,
  )
  for row in rows if reference else ():
    pairs = zip(row["distances"], reference["distances"], strict=True)
    more = [
      statistics.mean(a - b for a, b in zip(ours, theirs, strict=False))
      for ours, theirs in pairs
    ]
    row["above_reference"] = statistics.mean(more)
    row["above_reference_interval"] = _interval(more)


def _draw(rows, distance):
  """Return a figure of the best distance over T, a line per pair."""
  fig = figure.Figure((6.4, 4.6), layout="constrained")
  ax = fig.subplots()
  lines = {}
  for row in rows:
    lines.setdefault(f"{row['sampler']}, {row['grid']}", []).append(row)
  for k, (label, own) in enumerate(lines.items()):
    heights = [row[distance] for row in own]
    bars = [row["interval"][1] - row[distance] for row in own]
    bars = [bar if math.isfinite(bar) else 0 for bar in bars]
    style = {"color": f"C{k % 10}", "marker": "osD^vPX"[k % 7], "ms": 4}
    style["linestyle"] = "-" if label.startswith("ancestral") else "--"
    steps = [row["T"] for row in own]
    ax.errorbar(steps, heights, bars, label=label, elinewidth=0.8, **style)
  ax.set(
    xscale="log",
    yscale="log",
    xlabel="T, network evaluations per branch",
    ylabel=f"{distance} at the best w",
  )
  ax.set_xticks(sorted({row["T"] for row in rows}))
  for axis, subs in ((ax.xaxis, None), (ax.yaxis, (1, 2, 5))):
    if subs:
      axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(ticker.NullFormatter())
  ax.xaxis.set_minor_locator(ticker.NullLocator())
  ax.grid(color="#e8e8e8", linewidth=0.6)
  ax.spines[["top", "right"]].set_visible(False)
  fig.legend(loc="outside upper left", ncols=2, fontsize=8, frameon=False)
  return fig


def _pairs():
  """Return [(sampler, grid)] of --pairs."""
  for pair in _WHAT.value:
    if pair not in _PAIRS:
      raise errors.UserError(f"--pairs={pair}: must be of {', '.join(_PAIRS)}")
  return [pair.split("/") for pair in _WHAT.value]


def main():
  """Measure, print the best of every curve, write JSON and the picture."""
  config, workdir = _CONFIG.value, epath.Path(_WORKDIR.value)
  name = validation.own_network(config)
  distance, pairs = f"fd_{name}" if name else "fid", _pairs()
  config.sweep.distance = distance
  measurements = Measurements(config, workdir)
  strengths = sorted(map(float, _STRENGTHS.value))
  best = [
    best_of_curve(
      *(measurements, distance, strengths), sampler=sampler, grid=grid, T=steps
    )
    for steps in sorted(map(int, _STEPS.value))
    for sampler, grid in pairs
  ]
  best = [row for row in best if row]
  _beside(best)
  print("\nThe best of every curve:")
  best.sort(key=lambda row: pairs.index([row["sampler"], row["grid"]]))
  for row in best:
    print(_text(row, distance))
    if "above_reference" in row:
      low, high = row["above_reference_interval"]
      print(
        f"  above the reference: {row['above_reference']:.2f} "
        f"({low:.2f} to {high:.2f})"
      )
  machine.write(machine.environment() | {"rows": best})
  if _PICTURE.value:
    picture = plots.png(_draw(best, distance))
    files.write_atomic(epath.Path(_PICTURE.value), picture)


if __name__ == "__main__":
  launcher.run(main)
