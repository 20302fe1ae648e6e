"""The samplers, the guidance and the data set of docs/extending.md, used."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgd import diffusion
from cfgd import methods
from cfgd import validation
from cfgd.data import catalog
from cfgd.data import prepare
from cfgd.data import sources
from cfgd.data import spec
from cfgd.paper import toy
from cfgd.sampling import generate
from cfgd.sweep import grid
from cfgd.sweep import planner
from cfgd.sweep import runner
from cfgd.training import loop
from configs import base
from tests import conftest
from tests.sampling import test_guided

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "extending.md"
SCHEDULE = diffusion.Schedule(-20.0, 20.0)


@pytest.fixture(scope="module")
def page():
  """Run the blocks of the page, one after the other; remove its rows after."""
  names = {"__name__": "extending"}
  tables = diffusion.SAMPLERS, methods.METHODS
  before = [dict(table) for table in tables]
  blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
  for text in blocks:
    exec(compile(text, str(PAGE), "exec"), names)
  yield names
  for table, rows in zip(tables, before, strict=True):
    table.clear()
    table.update(rows)


def test_the_config_is_complete(page):
  config = page["get_config"]()
  assert config.data.source == "folder:/photos"
  assert set(config) == set(base.get_config())


def test_the_data_set_is_prepared_and_read(page, tmp_path, monkeypatch):
  monkeypatch.setitem(catalog._FINDERS, "npz", page["find_npz"])
  images = np.arange(6 * 8 * 8 * 3, dtype=np.uint8).reshape(6, 8, 8, 3)
  np.savez(tmp_path / "a.npz", images=images, labels=np.arange(6) % 2)
  wanted = spec.Spec(
    f"npz:{tmp_path / 'a.npz'}",
    image_size=4,
    data_dir=str(tmp_path / "sets"),
    channels=3,
    num_classes=2,
  )
  prepare.prepare(wanted, manual_dir="", workers=1, allow_other=False)
  source = sources.load(wanted, "train")
  assert len(source) == 6
  means = images.reshape(6, 4, 2, 4, 2, 3).mean(axis=(2, 4))
  assert abs(source.read([3])["image"][0] - means[3]).max() <= 0.5


def path_end(sampler, num_steps):
  """Return where a sampler leads from fixed noise, with an exact score."""
  predict = diffusion.predictor(
    toy.denoiser(toy.THREE), threshold=diffusion.no_threshold, v=0.0
  )
  z = np.random.default_rng(0).normal(size=(60, 1, 1, 2)).astype(np.float32)
  label = jnp.full(60, 3)  # of the mixture, whose path is curved
  run = jax.jit(lambda grid: sampler(predict, None, z, label, grid))
  # Evenly spaced log-SNRs: the paper's grid takes long steps at both ends.
  return np.asarray(run(jnp.linspace(-10.0, 12.0, num_steps)))


def test_the_multistep_solver_is_of_second_order(page):
  """Half the step is half of DDIM's error, and a quarter of its."""
  exact = path_end(diffusion.ddim, 8000)
  error = {
    name: [
      np.sqrt(np.mean((path_end(sampler, num_steps) - exact) ** 2))
      for num_steps in (32, 64)
    ]
    for name in ("ddim", "adams")
    for sampler in [diffusion.SAMPLERS[name].sample]
  }
  gain = {name: coarse / fine for name, (coarse, fine) in error.items()}
  assert 1.8 < gain["ddim"] < 2.2
  assert 3.2 < gain["adams"] < 4.8, gain
  assert error["adams"][1] < 0.3 * error["ddim"][1]


def test_corrections_keep_the_distribution(page):
  number = 3000
  keys = diffusion.image_keys(0, np.arange(number))
  z = diffusion.normal(diffusion.fold_in(keys, 0), (1, 1, 2))
  predict = diffusion.predictor(
    toy.denoiser(toy.THREE), threshold=diffusion.no_threshold, v=0.0
  )
  row = diffusion.SAMPLERS["corrected"]
  order = row.levels(199)
  levels = np.linspace(-10.0, 12.0, order[-1] + 1, dtype=np.float32)
  label = jnp.zeros(number, int)
  x = jax.jit(row.sample, static_argnums=0)(
    *(predict, keys, z, label, jnp.array(levels[order]))
  ).reshape(number, 2)
  np.testing.assert_allclose(x.mean(axis=0), toy.THREE.means[0], atol=0.04)
  # The Langevin step, of finite size, widens what it corrects.
  np.testing.assert_allclose(x.std(axis=0), toy.THREE.stds[0], rtol=0.08)


def test_the_samples_of_the_page_have_their_classes(page):
  samples = np.asarray(page["samples"]).reshape(30, 2)
  means = toy.THREE.means
  mine = np.linalg.norm(samples - means[np.arange(30) % 3], axis=1)
  # Gaussians of standard deviation 0.6: a distance of 0.75 on average.
  assert 0.5 < mine.mean() < 1.0


def test_the_guidance_keeps_the_length(page):
  z = np.random.default_rng(0).normal(size=(5, 1, 1, 2)).astype(np.float32)
  logsnr, label = np.zeros(5, np.float32), np.arange(5) % 3
  networks = methods.Networks(
    toy.denoiser(toy.THREE), 3, None, diffusion.extrapolate, two_passes=True
  )
  strength = methods.Strength(w=1.0, classifier_w=0.0)

  def eps_by(name):
    build = methods.METHODS[name].build
    return np.asarray(build(networks, strength)(z, logsnr, label).eps)

  eps, free, guided = map(eps_by, ("none", "cfg", "same_length"))
  length = lambda x: np.linalg.norm(x.reshape(5, -1), axis=1)  # noqa: E731
  np.testing.assert_allclose(length(guided), length(eps), rtol=1e-5)
  ratio = (guided / free).reshape(5, -1)
  np.testing.assert_allclose(ratio[:, 0], ratio[:, 1], rtol=1e-4)
  assert (abs(length(free) - length(eps)) > 1e-3).all()


@pytest.fixture(scope="module")
def extended(page, tmp_path_factory):
  """Return (config of a sweep over the new rows, workdir of a run)."""
  config = conftest.make_tiny()
  config.train.sample_every = 2  # previews by the new rows, too
  config.sampling.update({"sampler": "corrected", "guidance": "same_length"})
  config.sampling.w = 1.0
  config.sweep.grids = {
    "new": {
      "p_uncond": (0.1,),
      "T": (3,),
      "w": (0.0, 1.0),
      "guidance": ("same_length",),
      "sampler": ("corrected", "adams"),
    }
  }
  workdir = tmp_path_factory.mktemp("extended")
  # A network of random weights: after two steps one would hardly guide.
  test_guided.save(config, workdir / "run", (2,))
  return config, workdir


def test_new_rows_sample_and_preview(extended):
  config, workdir = extended
  config.train.steps = 4
  loop.train(config, workdir / "run")
  assert (workdir / "run/grids/step_00000004.png").exists()
  config.train.steps = 2
  config.sampling.checkpoint_step = 2
  images = {}
  for guidance in ("cfg", "same_length"):
    config.sampling.guidance = guidance
    path = generate.generate(config, workdir / "run")
    assert path.parent.name.startswith(f"corrected_{guidance}_T3_w")
    images[guidance] = np.load(path)["arr_0"]
  assert (images["same_length"] != images["cfg"]).any()
  recorded = json.loads((path.parent / "settings.json").read_text())
  assert "sampling.v" in recorded
  assert "sampling.noise_scale" not in recorded
  config.sampling.rescale = 0.5
  with pytest.raises(validation.errors.UserError, match="no second eps"):
    generate.generate(config, workdir / "run")
  config.sampling.update({"rescale": 0.0, "checkpoint_step": -1})


def test_new_rows_are_swept_and_planned(extended):
  config, workdir = extended
  runner.sweep(config, workdir / "sweep", lambda *_: None)
  done = [
    json.loads(path.read_text())
    for path in (workdir / "sweep").glob("cells/*/metrics.json")
  ]
  cells = {(cell["sampler"], cell["guidance"], cell["w"]) for cell in done}
  assert cells == {
    (sampler, "same_length", w)
    for sampler in ("corrected", "adams")
    for w in (0.0, 1.0)
  }
  # At w = 0 the samples are those of the conditional model.
  folders = (workdir / "sweep").glob("runs/*/samples/*")
  assert {path.name.split("_T3")[0] for path in folders} == {
    *("corrected_none", "corrected_same_length"),
    *("adams_none", "adams_same_length"),
  }


def test_new_rows_are_planned(extended):
  config, workdir = extended
  plan = grid.plan(config, workdir / "sweep")
  cost = {
    part.name.split("T=3")[1]: part.evaluations
    for part in planner.costs(config, plan)
    if part.cells
  }
  # T evaluations, at w = 0 and at w = 1, where each is of two branches. The
  # config's own choice is not named.
  mean = (3 + 6) / 2
  assert cost == {"": mean, ", sampler adams": mean}
  lines = planner.price(
    config, workdir / "sweep", planner.Rates(1000.0, 1000.0)
  )
  assert [line for line in lines if "sampler adams" in line]
