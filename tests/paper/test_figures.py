"""Figures: the panels that a config asks for, from the same noise."""

import numpy as np
from PIL import Image
import pytest

from cfgd.paper import figures
from cfgd.runtime import errors
from cfgd.sampling import generate
from tests import conftest


@pytest.fixture
def asked(monkeypatch, tmp_path):
  """Return the panels that `generate` was asked for; images are one grey."""
  panels = []

  def fake(config, workdir):
    panels.append(config.sampling)
    path = tmp_path / f"{len(panels)}.npz"
    number = config.sampling.num_samples
    images = np.full((number, 4, 4, 1), 10 * len(panels), np.uint8)
    np.savez(path, images, np.zeros(number, int))
    return path

  monkeypatch.setattr(generate, "generate", fake)
  return panels


def test_a_figure_has_a_panel_for_each_w_and_set_of_labels(asked, tmp_path):
  config = conftest.make_tiny()
  config.sweep.figures = {
    "small": {"labels": ((), (3,)), "w": (0.0, 2.0), "side": 2}
  }
  (path,) = figures.draw(config, tmp_path)
  assert path == tmp_path / "figures" / "small.png"
  assert [(k.w, tuple(k.labels), k.num_samples) for k in asked] == [
    *((0.0, (), 4), (0.0, (3,), 4), (2.0, (), 4), (2.0, (3,), 4)),
  ]
  assert len({(k.seed, k.T, k.sampler) for k in asked}) == 1
  pixels = np.asarray(Image.open(path).convert("L"))
  halves = np.array_split(pixels, 2, axis=1)
  for half, greys in zip(halves, ((10, 30), (20, 40)), strict=True):
    values, counts = np.unique(half, return_counts=True)
    large = values[counts > 2000].tolist()  # Not the rims of letters.
    assert large == [*greys, 255]


def test_bad_figures_are_refused_before_sampling(asked, tmp_path):
  config = conftest.make_tiny()
  config.sweep.figures = {"bad": {"labels": ((77,),), "w": (0.0,), "side": 2}}
  with pytest.raises(errors.UserError, match=r"sampling\.labels=77"):
    figures.draw(config, tmp_path)
  config.sweep.figures = {}
  with pytest.raises(errors.UserError, match="names no figures"):
    figures.draw(config, tmp_path)
  assert not asked
