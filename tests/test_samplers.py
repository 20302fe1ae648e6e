"""Samplers of few steps, and their grids, against exact scores.

A Gaussian's predictor is linear, so the mean and variance of a sampler's result
are known exactly: images of one call have one source of randomness each.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgd import diffusion
from cfgd.models import parametrization
from cfgd.paper import toy

SCHEDULE = diffusion.Schedule(-20.0, 20.0)
ENDS = {"logsnr_low": -7.0, "logsnr_high": 9.0}
GRIDS = {
  "uniform_u": SCHEDULE.grid,
  "logsnr": functools.partial(diffusion.even_logsnrs, **ENDS),
  "edm": functools.partial(diffusion.edm_logsnrs, **ENDS, rho=7.0),
}
MEAN, STD = 0.4, 0.5  # of the data
NULL_MEAN, NULL_STD = 0.0, 0.8


def three():
  """Return a copy of toy.THREE.

  JAX remembers in which precision it has met an array, and other tests have met
  toy.THREE's in single precision.
  """
  return toy.Mixture(*map(np.copy, toy.THREE))


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def grid_of(name, sampler, num_steps):
  """Return the log-SNR of each evaluation."""
  order = diffusion.SAMPLERS[sampler].levels(num_steps)
  return GRIDS[name](int(order[-1]) + 1)[order]


# The data N(MEAN, STD^2) and its guidance away from N(NULL_MEAN, NULL_STD^2).


def gaussian(z, logsnr, label):
  """The exact DenoiseFn; label 1 is the null label."""
  alpha, sigma = diffusion.alpha_sigma(logsnr)
  null = (label == 1)[:, None]
  mean = jnp.where(null, NULL_MEAN, MEAN)
  std = jnp.where(null, NULL_STD, STD)
  alpha, sigma = alpha[:, None], sigma[:, None]
  variance = alpha**2 * std**2 + sigma**2
  return diffusion.Prediction(sigma * (z - alpha * mean) / variance)


def predictor(w=0.0, denoise=gaussian, null_label=1):
  guided = diffusion.classifier_free_guidance(
    denoise, w, null_label=null_label, two_passes=True
  )
  return diffusion.predictor(guided, threshold=diffusion.no_threshold, v=0.0)


def moments(monkeypatch, sampler, logsnrs, w=0.0, **numbers):
  """Return mean and variance of a sampler's result, exactly.

  Image 0 starts at 1 without noise, image t at 0 with a noise of 1 at
  transition t alone, and the last has neither.
  """
  count = len(logsnrs) + 2

  def one_at_a_time(t, shape):
    return jnp.zeros((count, *shape)).at[t].set(1.0)

  monkeypatch.setattr(diffusion, "fold_in", lambda keys, t: t)
  monkeypatch.setattr(diffusion, "normal", one_at_a_time)
  z = jnp.zeros((count, 1)).at[0].set(1.0)
  sample = diffusion.SAMPLERS[sampler].sample
  x = sample(
    *(predictor(w), None, z, jnp.zeros(count, int), logsnrs), **numbers
  )
  return float(x[-1, 0]), float(jnp.sum((x[:-1] - x[-1]) ** 2))


# Order of convergence.


def orders(errors):
  """Return by how much each halving of the step lowers the error, as powers."""
  errors = np.array(errors)
  return np.log2(errors[:-1] / errors[1:])


@pytest.mark.parametrize("w", [0.0, 1.0])
@pytest.mark.parametrize("grid", ["logsnr", "edm"])
@pytest.mark.parametrize(
  ("sampler", "order"), [("ddim", 1), ("dpmpp_2m", 2), ("heun", 2)]
)
def test_deterministic_samplers_converge_on_the_toy(sampler, order, grid, w):
  """To a fine solution of DDIM's path, which has no order to be wrong in."""
  number = 60
  keys = diffusion.image_keys(0, np.arange(number))
  z = diffusion.normal(diffusion.fold_in(keys, 0), (1, 1, 2))
  predict = predictor(w, toy.denoiser(three()), null_label=3)

  @functools.partial(jax.jit, static_argnums=0)
  def draw(name, logsnrs):
    sample = diffusion.SAMPLERS[name].sample
    return sample(predict, keys, z, jnp.arange(number) % 3, logsnrs)

  # Richardson: the error of DDIM is 1/T, so two solutions cancel it.
  coarse, fine = (draw("ddim", grid_of(grid, "ddim", n)) for n in (2001, 4001))
  exact = 2 * fine - coarse
  errors = [
    jnp.sqrt(jnp.mean((draw(sampler, grid_of(grid, sampler, n)) - exact) ** 2))
    for n in (33, 65, 129)
  ]
  np.testing.assert_allclose(orders(errors), order, atol=0.25)


@pytest.mark.parametrize("w", [0.0, 1.0])
@pytest.mark.parametrize(
  ("sampler", "order"), [("ddim", 1), ("dpmpp_2m", 2), ("heun", 2)]
)
def test_deterministic_samplers_converge_on_a_gaussian(
  monkeypatch, sampler, order, w
):
  def result(name, count):
    logsnrs = grid_of("logsnr", name, count)
    return np.array(moments(monkeypatch, name, logsnrs, w))

  exact = 2 * result("ddim", 2001) - result("ddim", 1001)
  if not w:
    # The flow keeps the marginal, of which x at the end is the posterior mean.
    alpha, sigma = map(float, diffusion.alpha_sigma(ENDS["logsnr_high"]))
    kept = alpha**2 * STD**2 / (alpha**2 * STD**2 + sigma**2)
    start = diffusion.alpha_sigma(ENDS["logsnr_low"])
    shift = float(start[0]) * MEAN * STD  # z starts without the data's mean
    np.testing.assert_allclose(exact[1], kept * STD**2, rtol=2e-3)
    np.testing.assert_allclose(exact[0], MEAN, atol=2 * shift)
  errors = [abs(result(sampler, n) - exact).max() for n in (33, 65, 129)]
  np.testing.assert_allclose(orders(errors), order, atol=0.25)


def by_hand(logsnrs, w):
  """Mean and variance of SDE-DPM-Solver++(2M), followed in NumPy.

  The state is (z, x before), both linear in the start and the noise.
  """

  def line(logsnr):
    """Return (a, b) of the guided x = a z + b."""
    alpha = np.sqrt(1 / (1 + np.exp(-logsnr)))
    sigma = np.sqrt(1 / (1 + np.exp(logsnr)))
    slope, offset = 0.0, 0.0
    for share, mean, std in (
      (1 + w, MEAN, STD),
      (-w, NULL_MEAN, NULL_STD),
    ):
      variance = alpha**2 * std**2 + sigma**2
      slope += share * sigma / variance
      offset -= share * sigma * alpha * mean / variance
    return (1 - sigma * slope) / alpha, -sigma * offset / alpha

  logsnrs = np.float64(logsnrs)
  mean, cov = np.zeros(2), np.diag([1.0, 0.0])
  before = None
  for here, after in itertools.pairwise(logsnrs):
    a, b = line(here)
    h = (after - here) / 2
    r = 0.0 if before is None or h > 2 * before else h / (2 * before)
    sigma, sigma_after = (1 / np.sqrt(1 + np.exp(k)) for k in (here, after))
    alpha_after = np.sqrt(1 / (1 + np.exp(-after)))
    keep = sigma_after / sigma * np.exp(-h)
    push = alpha_after * (1 - np.exp(-2 * h))
    step = np.array([[keep + push * (1 + r) * a, -push * r], [a, 0.0]])
    mean = step @ mean + [push * (1 + r) * b, b]
    cov = step @ cov @ step.T
    cov[0, 0] += sigma_after**2 * (1 - np.exp(-2 * h))
    before = h
  a, b = line(logsnrs[-1])
  return a * mean[0] + b, a**2 * cov[0, 0]


@pytest.mark.parametrize("w", [0.0, 1.0])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("num_steps", [2, 3, 12, 33])
def test_the_stochastic_solver_has_the_moments_of_its_formula(
  monkeypatch, num_steps, grid, w
):
  logsnrs = grid_of(grid, "sde_dpmpp_2m", num_steps)
  actual = moments(monkeypatch, "sde_dpmpp_2m", logsnrs, w)
  np.testing.assert_allclose(actual, by_hand(logsnrs, w), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("sampler", ["ancestral", "sde_dpmpp_2m"])
def test_stochastic_samplers_converge_to_the_data(monkeypatch, sampler):
  errors = []
  for count in (33, 65, 129):
    logsnrs = diffusion.even_logsnrs(count, logsnr_low=-14.0, logsnr_high=14.0)
    mean, variance = moments(monkeypatch, sampler, logsnrs)
    errors.append(abs(variance - STD**2))
    assert mean == pytest.approx(MEAN, abs=1e-3)
  order = {"ancestral": 1, "sde_dpmpp_2m": 2}[sampler]
  assert orders(errors)[-1] == pytest.approx(order, abs=0.3)


def test_a_long_last_transition_is_of_first_order(monkeypatch):
  """On the paper's grid an extrapolated end would be worse than DDIM's."""

  def error(sampler):
    logsnrs = grid_of("uniform_u", sampler, 16)
    exact = moments(monkeypatch, "ddim", grid_of("uniform_u", "ddim", 4001))
    actual = moments(monkeypatch, sampler, logsnrs)
    return abs(np.array(actual) - exact).max()

  first, second = error("ddim"), error("dpmpp_2m")
  monkeypatch.setattr(diffusion, "_MAX_STRETCH", np.inf)
  assert second < first / 4 < error("dpmpp_2m")


# Heun.


def edm(z, logsnrs, noises, *, churn, low, high, noise_scale):
  """Algorithm 2 of arXiv:2206.00364 in its own variables, of one number."""
  sigmas = np.exp(-np.float64(logsnrs) / 2)
  x = z / np.sqrt(1 / (1 + sigmas[0] ** 2))

  def denoised(x, sigma):
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)

  gamma = min(churn / len(sigmas), np.sqrt(2) - 1)
  for i, sigma in enumerate(sigmas):
    grow = 1 + gamma * (low <= sigma <= high and i > 0)
    hat = sigma * grow
    x = x + np.sqrt(hat**2 - sigma**2) * noise_scale * noises[i]
    if i + 1 == len(sigmas):
      return denoised(x, hat)
    slope = (x - denoised(x, hat)) / hat
    after = sigmas[i + 1]
    euler = x + (after - hat) * slope
    slope_after = (euler - denoised(euler, after)) / after
    x = x + (after - hat) * (slope + slope_after) / 2
  return None


@pytest.mark.parametrize("churn", [0.0, 4.0, 40.0])
def test_heun_is_edms_algorithm(monkeypatch, churn):
  levels = 8
  noises = np.random.default_rng(0).standard_normal(levels)
  monkeypatch.setattr(diffusion, "fold_in", lambda keys, t: t)
  # Transition i starts at evaluation 2 i + 1.
  monkeypatch.setattr(
    diffusion,
    "normal",
    lambda t, shape: jnp.full((1, *shape), jnp.array(noises)[(t - 1) // 2]),
  )
  low, high = 0.05, 20.0
  x = diffusion.heun(
    *(predictor(), None, jnp.full((1, 1), 0.7), jnp.zeros(1, int)),
    grid_of("edm", "heun", 2 * levels - 1),
    churn=churn,
    churn_low=-2 * np.log(high),
    churn_high=-2 * np.log(low),
    noise_scale=1.1,
  )
  desired = edm(
    *(0.7, GRIDS["edm"](levels), noises),
    **{"churn": churn, "low": low, "high": high, "noise_scale": 1.1},
  )
  np.testing.assert_allclose(x, desired, rtol=1e-7)


@pytest.mark.parametrize("sampler", diffusion.SAMPLERS)
@pytest.mark.parametrize("num_steps", [2, 5, 8])
def test_T_counts_evaluations(sampler, num_steps):
  """Each at its log-SNR, the last at lambda_T; no noise level is left out."""
  seen = []
  predict = predictor()

  def watched(z, logsnr, label):
    jax.debug.callback(lambda at: seen.append(float(at)), logsnr, ordered=True)
    return predict(z, logsnr, label)

  row = diffusion.SAMPLERS[sampler]
  logsnrs = grid_of("logsnr", sampler, num_steps)
  score = {"score": lambda z, *_: 0 * z} if row.without_score else {}
  keys = diffusion.image_keys(0, np.arange(2))
  row.sample(
    watched, keys, jnp.ones((2, 1)), jnp.zeros(2, int), logsnrs, **score
  )
  jax.effects_barrier()
  np.testing.assert_allclose(seen, logsnrs, rtol=1e-12)
  levels = list(dict.fromkeys(map(float, logsnrs)))
  np.testing.assert_allclose(levels, GRIDS["logsnr"](len(levels)))


def test_an_even_T_leaves_out_the_last_correction(monkeypatch):
  x = [
    moments(monkeypatch, "heun", grid_of("logsnr", "heun", n))[0]
    for n in (12, 13)
  ]
  assert x[0] != x[1]
  fine = moments(monkeypatch, "heun", grid_of("logsnr", "heun", 401))[0]
  assert abs(x[0] - fine) < 0.02


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "sde_dpmpp_2m", "heun"])
def test_clipped_predictions_bound_the_samples_and_a_nan_is_not_hidden(sampler):
  keys = diffusion.image_keys(0, np.arange(5))
  z = diffusion.normal(diffusion.fold_in(keys, 0), (2,))

  def draw(denoise):
    predict = diffusion.predictor(denoise, threshold=diffusion.clip, v=0.0)
    logsnrs = grid_of("uniform_u", sampler, 16)
    sample = diffusion.SAMPLERS[sampler].sample
    return sample(predict, keys, z, jnp.zeros(5, int), logsnrs)

  wild = draw(lambda z, *_: diffusion.Prediction(-50.0 * z))
  assert np.isfinite(wild).all()
  assert np.abs(wild).max() <= 1
  broken = draw(lambda z, *_: diffusion.Prediction(jnp.full_like(z, jnp.nan)))
  assert np.isnan(broken).all()


@pytest.mark.parametrize("num_steps", [5, 32, 64])
def test_heun_corrects_no_transition_that_is_too_long(num_steps):
  """On the paper's grid: it would multiply rounding by up to 4,000."""
  number = 100

  def draw(dtype):
    z = (
      np.random.default_rng(0).standard_normal((number, 1, 1, 2)).astype(dtype)
    )
    logsnrs = np.float32(grid_of("uniform_u", "heun", num_steps)).astype(dtype)
    predict = predictor(1.0, toy.denoiser(three()), null_label=3)
    label = jnp.arange(number) % 3
    sample = functools.partial(diffusion.heun, predict)
    keys = diffusion.image_keys(0, np.arange(number))
    return np.asarray(jax.jit(sample)(keys, jnp.array(z), label, logsnrs))

  double = draw(np.float64)
  assert np.abs(double).max() < 5  # the classes' means are of length 1
  with jax.enable_x64(False):
    single = draw(np.float32)
  assert np.abs(single - double).max() < 1 / 255  # half a level of 8 bits


# Grids.


@pytest.mark.parametrize("rho", [1.0, 7.0, 1000.0])
def test_the_edm_grid_holds_its_ends_in_float32(rho):
  for low, high in ((-20.0, 20.0), (-7.0, 9.0)):
    with jax.enable_x64(False):
      levels = diffusion.edm_logsnrs(
        12, logsnr_low=low, logsnr_high=high, rho=rho
      )
    assert levels.dtype == np.float32
    assert (levels[0], levels[-1]) == (low, high)
    assert (np.diff(levels) > 0).all()


@pytest.mark.parametrize("num", [2, 7, 250])
def test_grids_rise_from_end_to_end(num):
  for name, levels in GRIDS.items():
    ends = (-20, 20) if name == "uniform_u" else ENDS.values()
    np.testing.assert_allclose(levels(num)[np.array([0, -1])], list(ends))
    assert (np.diff(levels(num)) > 0).all()


def test_the_edm_grid_is_its_formula():
  high, low, rho, num = 80.0, 0.002, 7.0, 18
  i = np.arange(num)
  root = high ** (1 / rho) + i / (num - 1) * (
    low ** (1 / rho) - high ** (1 / rho)
  )
  ends = {"logsnr_low": -2 * np.log(high), "logsnr_high": -2 * np.log(low)}
  actual = diffusion.edm_logsnrs(num, **ends, rho=rho)
  np.testing.assert_allclose(np.exp(-actual / 2), root**rho, rtol=1e-6)


@pytest.mark.parametrize("timesteps", ["adm_linear", "adm_cosine"])
@pytest.mark.parametrize("num", [2, 25, 100, 250, 667, 1000])
def test_the_adm_grid_is_that_of_its_timesteps(timesteps, num):
  model = parametrization.Model(None, timesteps, SCHEDULE)
  taken, at = [], 0.0
  for _ in range(num):
    taken.append(round(at))
    at += 999 / (num - 1)
  assert len(set(taken)) == num
  logsnrs = model.respaced(num)
  np.testing.assert_allclose(model.time(logsnrs), taken[::-1], atol=2e-3)
