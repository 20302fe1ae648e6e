"""What guidance gives for its forward passes: a picture and a table.

  python -m benchmarks.one_pass --runs=DIR --out=docs/figures/one_pass.png

Reads the sweeps DIR/all and DIR/late of configs/sweep_embedded_one_pass.py, and
counts the forward passes of each cell by FLOP. Prints means over the seeds as a
table, the best of each way in bold with its standard deviation.
"""

from typing import NamedTuple

from absl import flags
from etils import epath
from matplotlib import figure
from matplotlib import ticker
import numpy as np

from cfgd import build
from cfgd.report import plots
from cfgd.runtime import errors
from cfgd.runtime import files
from cfgd.sweep import grid
from cfgd.sweep import planner
from cfgd.sweep import results
from configs import sweep_embedded_one_pass
from experiments import launcher

_RUNS = flags.DEFINE_string("runs", None, "Folder of the two sweeps.")
_OUT = flags.DEFINE_string("out", None, "Picture, a .png.")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


class Point(NamedTuple):
  """A way to sample at one w: forward passes per image, and each metric.

  Metrics are [seeds].
  """

  way: str
  w: float
  passes: float
  metrics: dict


def points(form, workdir):
  """Return the Points of a sweep, in the order of its cells.

  Raises:
    errors.UserError: a cell has no result yet.
  """
  config = sweep_embedded_one_pass.get_config(form)
  found = {}
  for planned in grid.plan(config, workdir):
    path = results.path(planned)
    if not path.exists():
      raise errors.UserError(f"{path}: no such file; finish the sweep first")
    found.setdefault(planned.cell.point, []).append(
      (planned, results.Result.from_json(path.read_text()))
    )
  base = build.forward_flop(sweep_embedded_one_pass.get_config())
  made = []
  for members in found.values():
    planned, first = members[0]
    passes = planner.evaluations(planned.config, 0.0)
    passes *= build.forward_flop(planned.config) / base
    values = {
      name: np.array([result.metrics[name] for _, result in members])
      for name in first.metrics
    }
    way = _way(planned.config, form)
    made.append(Point(way, planned.cell.w, passes, values))
  return made


def _way(config, form):
  sampling = config.sampling
  kind = "Algorithm 2" if sampling.sampler == "ancestral" else sampling.sampler
  kind += f", T = {sampling.T}"
  if sampling.guidance == "distilled":
    return f"{kind}, distilled"
  return f"{kind}, late conditioning" if form == "late" else kind


def _draw(made, distance, score):
  """Return a figure: each metric over the forward passes, a line per way."""
  fig = figure.Figure((9.6, 4.4), layout="constrained")
  axes = fig.subplots(1, 3)
  names = (distance, score, "recall")
  labels = (f"{distance}, lower is better", f"{score}, higher is better")
  labels += ("recall, higher is more varied",)
  for ax, name, label in zip(axes, names, labels, strict=True):
    for k, way in enumerate(dict.fromkeys(point.way for point in made)):
      own = [point for point in made if point.way == way]
      at = [point.passes for point in own]
      heights = [point.metrics[name].mean() for point in own]
      bars = [point.metrics[name].std(ddof=1) for point in own]
      style = {"color": _COLOURS[k], "marker": "osD^"[k], "ms": 4}
      ax.errorbar(at, heights, bars, label=way, lw=1, elinewidth=0.8, **style)
      side = 1 if way.endswith(tuple("0123456789")) else -1
      for x, y, point in zip(at, heights, own, strict=True):
        if point.w in (0.0, 0.3, 1.0, 4.0):
          ax.annotate(
            *(f"{point.w:g}", (x, y), (6 * side, 0)),
            **{"textcoords": "offset points", "va": "center"},
            ha="left" if side > 0 else "right",
            **{"fontsize": 7, "color": _COLOURS[k]},
          )
    ax.set(xscale="log", xlabel="forward passes per image", ylabel=label)
    ax.set_xticks([12, 24, 100, 512])
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.margins(x=0.15)
    ax.grid(color="#e8e8e8", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
  axes[0].set_yscale("log")
  axes[0].yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axes[0].yaxis.set_major_formatter("{x:g}")
  axes[0].yaxis.set_minor_formatter(ticker.NullFormatter())
  lines, texts = axes[0].get_legend_handles_labels()
  fig.legend(lines, texts, loc="outside upper left", ncols=2, frameon=False)
  return fig


def _table(made, distance, score):
  """Return a Markdown table, and a line for the best of each way."""
  lines = [
    f"| way | w | forward passes | {distance} | {score} | recall |",
    "| --- | ---: | ---: | ---: | ---: | ---: |",
  ]
  for way in dict.fromkeys(point.way for point in made):
    own = [point for point in made if point.way == way]
    best = min(own, key=lambda point: point.metrics[distance].mean())
    for point in own:
      means = {name: value.mean() for name, value in point.metrics.items()}
      text = f"{means[distance]:.2f}"
      spread = point.metrics[distance].std(ddof=1)
      text = f"**{text}** ± {spread:.2f}" if point is best else text
      lines.append(
        f"| {way} | {point.w:g} | {point.passes:.1f} | {text} | "
        f"{means[score]:.2f} | {means['recall']:.2f} |"
      )
  return "\n".join(lines)


def main():
  """Print the table and write the picture."""
  if not (_RUNS.value and _OUT.value):
    raise errors.UserError("give --runs=DIR and --out=FILE.png")
  runs = epath.Path(_RUNS.value)
  made = [
    point for form in ("all", "late") for point in points(form, runs / form)
  ]
  sweep = sweep_embedded_one_pass.get_config().sweep
  print(_table(made, sweep.distance, sweep.score))
  picture = plots.png(_draw(made, sweep.distance, sweep.score))
  files.write_atomic(epath.Path(_OUT.value), picture)


if __name__ == "__main__":
  launcher.run(main)
