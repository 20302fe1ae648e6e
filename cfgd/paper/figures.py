"""Samples at several w from the same noise, as in Figures 1, 3 and 6 to 8."""

from absl import logging
from etils import epath
import numpy as np

from cfgd import validation
from cfgd.data import images as image_ops
from cfgd.report import plots
from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import files
from cfgd.sampling import generate
from cfgd.sweep import grid


def draw(config, workdir):
  """Draw `config.sweep.figures` from the checkpoint of a trained run.

  Returns:
    Paths of the pictures, workdir/figures/NAME.png.

  Raises:
    errors.UserError: no figures, a bad one, or another run's workdir.
  """
  figures = config.sweep.figures
  if not figures:
    raise errors.UserError(
      "sweep.figures={}: names no figures; configs/sweep_*.py have some"
    )
  panels = {name: _panels(config, figure) for name, figure in figures.items()}
  for configs in panels.values():
    for panel in configs:
      validation.validate_sampling(panel)
  return [
    _draw(panels[name], epath.Path(workdir), name, figures[name])
    for name in figures
  ]


def _panels(config, figure):
  """Return one config for each w and set of labels."""
  return [
    grid.cell_config(
      config,
      p_uncond=config.diffusion.p_uncond,
      w=float(w),
      labels=tuple(labels),
      num_samples=figure.side**2,
    )
    for w in figure.w
    for labels in figure.labels
  ]


def _draw(panels, workdir, name, figure):
  samples = [generate.generate(panel, workdir) for panel in panels]
  path = workdir / "figures" / f"{name}.png"
  if distributed.is_lead():
    titles = [f"w={plots.both(panel.sampling.w)}" for panel in panels]
    # One set of labels: a row, as in Figure 1. Several: a row for each w, as in
    # Figure 6.
    columns = len(figure.labels) if len(figure.labels) > 1 else len(figure.w)
    pictures = [_picture(sample, figure.side) for sample in samples]
    drawn = plots.panels_figure(pictures, titles, columns)
    files.write_atomic(path, plots.png(drawn))
    logging.info("Figure: %s", path)
  return path


def _picture(samples, side):
  with np.load(epath.Path(samples).open("rb")) as arrays:
    return image_ops.grid(arrays["arr_0"], side)
