"""The three Gaussians: exact where it says so, honest where it cannot be."""

import functools
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from cfgd.paper import toy
from cfgd.runtime import errors

ROOT = pathlib.Path(__file__).parent.parent
UNEVEN = toy.Mixture(
  means=np.array([[1.0, 0.2], [-0.7, 0.8], [0.1, -1.1]]),
  stds=np.array([0.5, 0.8, 0.3]),
  weights=np.array([0.5, 0.2, 0.3]),
)
LINE = np.linspace(-6, 6, 241)
GRID = np.stack(np.meshgrid(LINE, LINE), axis=-1).reshape(-1, 2)
CELL = (LINE[1] - LINE[0]) ** 2


@functools.cache
def log_density(mixture_index, logsnr):
  mixture = (toy.THREE, UNEVEN)[mixture_index]
  inputs = np.float32(GRID), np.full(len(GRID), logsnr, np.float32)
  found = jax.jit(functools.partial(toy.log_density, mixture))(*inputs)
  return np.asarray(found, np.float64)


def test_density_is_that_of_diffused_data():
  # Of z = alpha x + sigma eps: mass, mean and variance by quadrature.
  logsnr = 0.7
  alpha = (1 + np.exp(-logsnr)) ** -0.5
  sigma = (1 + np.exp(logsnr)) ** -0.5
  density = np.exp(log_density(1, logsnr)) * CELL  # [N, K]
  mean = density.T @ GRID
  variance = density.T @ GRID**2 - mean**2
  np.testing.assert_allclose(density.sum(axis=0), 1, rtol=1e-5)
  np.testing.assert_allclose(mean, alpha * UNEVEN.means, atol=1e-5)
  desired = alpha**2 * UNEVEN.stds**2 + sigma**2
  np.testing.assert_allclose(variance.mean(axis=1), desired, rtol=1e-5)


def test_score_and_classifier_are_those_of_the_density():
  label = np.tile(np.int32([0, 1, 2, 3, 3, 3]), 5)
  logsnr = np.repeat(np.float32([-20, -3, 0, 4, 20]), 6)
  z = np.random.default_rng(0).standard_normal((30, 1, 1, 2), np.float32)

  def log_joint(z):
    return toy.log_density(UNEVEN, z, logsnr) + jnp.log(UNEVEN.weights)

  def log_p(z):
    null = jax.nn.logsumexp(log_joint(z), axis=1)
    own = jnp.take_along_axis(log_joint(z), label[:, None] % 3, 1)[:, 0]
    return jnp.sum(jnp.where(label == 3, null, own))

  @jax.jit
  def run(z):
    eps = toy.denoiser(UNEVEN)(z, logsnr, label).eps
    log_probs = toy.log_probs(UNEVEN)(z, logsnr)
    return eps, jax.grad(log_p)(z), log_probs, log_joint(z)

  eps, score, log_probs, joint = (np.float64(found) for found in run(z))
  sigma = (1 + np.exp(np.float64(logsnr))) ** -0.5
  desired = -sigma.reshape(-1, 1, 1, 1) * score
  np.testing.assert_allclose(eps, desired, atol=2e-6, rtol=2e-6)
  posterior = np.exp(joint) / np.exp(joint).sum(axis=1, keepdims=True)
  np.testing.assert_allclose(np.exp(log_probs), posterior, atol=2e-5)


def guided(w):
  """Return p(x | c) p(c | x)^w on the grid, each class of sum 1."""
  squares = ((GRID[:, None] - UNEVEN.means) ** 2).sum(axis=-1)
  own = np.exp(-0.5 * squares / UNEVEN.stds**2) / UNEVEN.stds**2
  posterior = own * UNEVEN.weights
  posterior /= posterior.sum(axis=1, keepdims=True)
  density = own * posterior**w
  return density / density.sum(axis=0)


@pytest.mark.parametrize("w", [0.0, 2.0])
def test_guided_density_and_its_draws(w):
  desired = guided(w)
  found = toy.guided_density(UNEVEN, np.float32(GRID), w, cell=CELL) * CELL
  np.testing.assert_allclose(found, desired, atol=1e-6)
  number = 20_000
  label = np.arange(3 * number) % 3
  x = toy.draw_guided(UNEVEN, label, w, np.random.default_rng(0))
  mean = desired.T @ GRID
  variance = desired.T @ GRID**2 - mean**2
  for c in range(3):
    error = np.abs(x[label == c].mean(axis=0) - mean[c])
    assert (error < 4 * np.sqrt(variance[c] / number)).all()
    ratio = x[label == c].var(axis=0) / variance[c]
    assert (np.abs(ratio - 1) < 6 / np.sqrt(number)).all()


def test_distance_of_a_moved_copy():
  x = np.random.default_rng(0).standard_normal((500, 2))
  assert toy.sliced_wasserstein(x, x[::-1]) == 0
  # The mean of |cos| over all directions is 2 / pi.
  moved = toy.sliced_wasserstein(x, x + np.array([0.6, 0.8]))
  np.testing.assert_allclose(moved, 2 / np.pi, rtol=1e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  out = tmp_path_factory.mktemp("toy") / "new"
  done = subprocess.run(
    [
      *(sys.executable, "-m", "experiments.toy", f"--out={out}"),
      *("--T=64", "--w=0", "--w=2"),
    ],
    **{"capture_output": True, "text": True, "cwd": ROOT, "check": False},
  )
  assert done.returncode == 0, done.stderr
  assert "| 2 (s=3) | ddim | classifier |" in done.stdout
  return out


def test_entry_point_writes_two_files(folder):
  names = {path.name for path in folder.iterdir()}
  assert names == {"distances.json", "figure2.png"}
  with Image.open(folder / "figure2.png") as picture:
    assert picture.width > 300


def rows_of(folder, w):
  report = json.loads((folder / "distances.json").read_text())
  rows = [row for row in report["rows"] if row["w"] == w]
  assert len(rows) == len(toy.SAMPLERS) * len(toy.GUIDANCES)
  return rows


def test_unguided_samples_reach_the_density(folder):
  for row in rows_of(folder, 0):
    assert row["distance"] < 1.3 * row["floor"], row


@pytest.mark.parametrize("w", [0, 2])
def test_both_guidances_draw_the_same_points(folder, w):
  rows = rows_of(folder, w)
  for free, classifier in zip(rows[::2], rows[1::2], strict=True):
    assert free["guidance"] == "classifier-free"
    assert classifier["guidance"] == "classifier"
    for name in ("distance", "spread"):
      assert abs(free[name] - classifier[name]) < 1e-5


def test_guidance_does_not_draw_the_density_that_its_formula_suggests(folder):
  for row in rows_of(folder, 2):
    assert row["distance"] > 3 * row["floor"], row
    assert row["spread"] < row["exact_spread"], row


@pytest.mark.parametrize(
  ("words", "changes"),
  [
    ("--w=-1: must be in 0..100", {"w": [0.0, -1.0]}),
    ("--w=nan", {"w": [float("nan")]}),
    ("--w: give at least one", {"w": []}),
    ("contains a number twice", {"w": [1.0, 1.0]}),
    ("--T=1: must be at least 2", {"num_steps": 1}),
    ("--variance_v=1.5", {"v": 1.5}),
    ("--samples=29", {"num_samples": 29}),
    ("--seed=-1", {"seed": -1}),
  ],
)
def test_mistakes_write_nothing(tmp_path, words, changes):
  arguments = {"w": [0.0], "num_steps": 3, "v": 0.3, "seed": 0}
  arguments |= {"num_samples": 30} | changes
  with pytest.raises(errors.UserError, match=words):
    toy.run(tmp_path / "new", **arguments)
  assert not list(tmp_path.iterdir())


def test_a_file_in_place_of_the_folder_is_left_alone(tmp_path):
  path = tmp_path / "file"
  path.write_text("mine")
  with pytest.raises(errors.UserError, match="is a file"):
    toy.run(path, w=[0.0], num_steps=3, v=0.3, num_samples=30, seed=0)
  assert path.read_text() == "mine"
