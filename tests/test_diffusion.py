"""The math against 50-digit references, exact Gaussians and fake denoisers."""

import functools
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgd import diffusion

RANGE = {"logsnr_min": -20.0, "logsnr_max": 20.0}
NULL = 10


@pytest.fixture(scope="module")
def math(golden):
  return golden("diffusion_math")


@pytest.fixture(scope="module")
def chain(golden):
  return golden("gaussian_chain")


def relative(actual, desired, rtol=5e-6):
  np.testing.assert_allclose(
    np.asarray(actual, np.float64), desired, rtol=rtol, atol=0
  )


def absolute(actual, desired, atol=5e-6):
  np.testing.assert_allclose(actual, desired, atol=atol, rtol=0)


# The schedule.


def test_schedule_matches_reference_to_both_ends(math):
  u = np.float32(math["u_f32exact"])
  assert {0.0, 1.0} <= set(u.tolist())
  schedule = jax.jit(functools.partial(diffusion.logsnr_schedule, **RANGE))
  absolute(schedule(u), math["lambda_of_u_f32exact"])


def test_schedule_near_one():
  # lambda(1 - 1e-6), with the float32 that is nearest to it, in float64.
  u = np.float32(1 - 1e-6)
  b = np.arctan(np.exp(-10.0))
  a = np.arctan(np.exp(10.0)) - b
  complement = np.float64(a) * (1 - np.float64(u)) + b
  absolute(
    diffusion.logsnr_schedule(u, **RANGE), 2 * np.log(np.tan(complement))
  )


def test_schedule_of_other_ranges(math):
  for (low, high), desired in zip(
    math["ranges"], math["ranges_lambda"], strict=True
  ):
    absolute(
      diffusion.logsnr_schedule(
        np.float32(math["ranges_u"]), logsnr_min=low, logsnr_max=high
      ),
      desired,
    )


@pytest.mark.parametrize("num_steps", [2, 3, 16, 64, 128, 256, 1024])
def test_grid_matches_reference(math, num_steps):
  grid = diffusion.logsnr_grid(num_steps, **RANGE)
  absolute(grid, math[f"sampler_lambda_T{num_steps}"])
  assert (np.diff(grid) > 0).all()


def test_density_and_inverse(math):
  logsnr = np.float32(math["lam"])
  relative(diffusion.density_of_logsnr(logsnr, **RANGE), math["p_lambda"])
  absolute(
    diffusion.log_density_of_logsnr(logsnr, **RANGE),
    math["log_p_lambda"],
    atol=1e-5,
  )
  absolute(
    diffusion.u_of_logsnr(logsnr, **RANGE), math["u_of_lambda"], atol=5e-7
  )


# Coefficients.


def test_alpha_sigma(math):
  for suffix in ("", "_ext"):
    alpha, sigma = diffusion.alpha_sigma(np.float32(math[f"lam{suffix}"]))
    relative(alpha, math[f"alpha{suffix}"])
    relative(sigma, math[f"sigma{suffix}"])


def test_alpha_sigma_of_the_schedule(math):
  u = np.float32(math["u_f32exact"])
  alpha, sigma = diffusion.alpha_sigma(diffusion.logsnr_schedule(u, **RANGE))
  relative(alpha, math["alpha_of_u_f32exact"])
  relative(sigma, math["sigma_of_u_f32exact"])


@pytest.fixture(scope="module")
def pairs(math):
  return {
    "logsnr_from": np.float32(math["pair_lam"]),
    "logsnr_to": np.float32(math["pair_lamp"]),
  }


def test_pairs_hold_small_gaps(pairs):
  gaps = pairs["logsnr_to"].astype(np.float64) - pairs["logsnr_from"]
  assert (gaps > 0).all()
  assert gaps.min() < 1e-4


def test_transition(math, pairs):
  coefficient, log_variance = jax.jit(diffusion.transition)(**pairs)
  relative(coefficient, math["pair_coef_fwd"])
  relative(jnp.exp(log_variance), math["pair_var_fwd"])
  absolute(log_variance, math["pair_log_var_fwd"], atol=1e-5)


def test_posterior(math, pairs):
  coefficient_z, coefficient_x, log_variance = jax.jit(diffusion.posterior)(
    **pairs
  )
  relative(coefficient_z, math["pair_coef_z"])
  relative(coefficient_x, math["pair_coef_x"])
  relative(jnp.exp(log_variance), math["pair_var_post"])
  absolute(log_variance, math["pair_log_var_post"], atol=1e-5)


@pytest.mark.parametrize("index", range(4))
def test_reverse_variance(math, pairs, index):
  log_variance = jax.jit(diffusion.reverse_log_variance)(
    **pairs, v=np.float32(math["v_values"][index])
  )
  relative(jnp.exp(log_variance), math["pair_var_v"][index])
  absolute(log_variance, math["pair_log_var_v"][index], atol=1e-5)


def test_conversions_are_inverse():
  x, eps = np.random.default_rng(0).standard_normal((2, 5, 4, 4, 3), np.float32)
  logsnr = np.float32([-6, -1, 0, 2, 6])
  z = diffusion.diffuse(x, eps, logsnr)
  absolute(diffusion.x_from_eps(z, eps, logsnr), x, atol=2e-5)
  absolute(diffusion.eps_from_x(z, x, logsnr), eps, atol=2e-5)
  score = diffusion.score_from_eps(eps, logsnr)
  absolute(diffusion.eps_from_score(score, logsnr), eps, atol=1e-6)


def test_score_of_a_standard_normal_is_minus_z():
  # Of data N(0, I) every z is N(0, I): eps = sigma z, score -z.
  z = np.random.default_rng(0).standard_normal((3, 2), np.float32)
  logsnr = np.float32([-3, 0, 3])
  _, sigma = diffusion.alpha_sigma(logsnr)
  absolute(diffusion.score_from_eps(sigma[:, None] * z, logsnr), -z, atol=1e-6)


# Training.


def keys(number):
  return diffusion.image_keys(0, np.arange(number))


def test_labels_drop_at_the_stated_rate():
  label = jnp.zeros(20_000, jnp.int32)
  for p_uncond in (0.0, 0.1, 0.5, 1.0):
    dropped = diffusion.drop_label(
      keys(20_000), label, p_uncond=p_uncond, null_label=NULL
    )
    assert set(np.unique(dropped)) <= {0, NULL}
    rate = np.mean(dropped == NULL)
    spread = 4 * np.sqrt(p_uncond * (1 - p_uncond) / 20_000)
    assert abs(rate - p_uncond) <= spread, (p_uncond, rate)


def loss_of(denoise, number=4000, **changes):
  arguments = {"p_uncond": 0.1, "null_label": NULL, **RANGE} | changes
  x = np.random.default_rng(1).uniform(-1, 1, (number, 2)).astype(np.float32)
  label = jnp.arange(number) % 10
  return diffusion.loss(denoise, keys(number), x, label, **arguments), x


def test_loss_of_zero_prediction_is_the_noise():
  values, _ = loss_of(
    lambda z, logsnr, label: diffusion.Prediction(jnp.zeros_like(z))
  )
  assert values.shape == (4000,)
  # The mean of two squared normals, over 4,000 examples: 1 +- 4 / sqrt(4000).
  assert abs(values.mean() - 1) < 4 / np.sqrt(4000)


def test_loss_of_the_true_noise_vanishes():
  x = None

  def denoise(z, logsnr, label):
    return diffusion.Prediction(diffusion.eps_from_x(z, x, logsnr))

  # x does not depend on the denoiser: take it, then use it. At the clean end
  # eps is the small difference of z and x: rounding of z, 6e-8, over sigma.
  _, x = loss_of(lambda z, *_: diffusion.Prediction(z))
  values, _ = loss_of(denoise, logsnr_min=-8.0, logsnr_max=8.0)
  assert values.max() < 1e-9


def test_loss_sees_dropped_labels_and_the_range():
  seen = {}

  def denoise(z, logsnr, label):
    seen.update(logsnr=logsnr, label=label)
    return diffusion.Prediction(z)

  loss_of(denoise, p_uncond=0.5)
  assert abs(np.mean(seen["label"] == NULL) - 0.5) < 4 * 0.5 / np.sqrt(4000)
  kept = seen["label"] != NULL
  np.testing.assert_array_equal(
    seen["label"][kept], (np.arange(4000) % 10)[kept]
  )
  assert seen["logsnr"].min() >= -20
  assert seen["logsnr"].max() <= 20
  # The hyperbolic secant's median is 0, and its quartiles follow from u.
  quartiles = np.quantile(seen["logsnr"], [0.25, 0.5, 0.75])
  exact = diffusion.logsnr_schedule(jnp.array([0.75, 0.5, 0.25]), **RANGE)
  absolute(quartiles, exact, atol=0.2)


def test_loss_of_an_example_ignores_the_others():
  def denoise(z, logsnr, label):
    return diffusion.Prediction(z * label[:, None])

  x = np.random.default_rng(1).standard_normal((6, 2), np.float32)
  label = jnp.arange(6)
  arguments = {"p_uncond": 0.3, "null_label": NULL, **RANGE}
  whole = diffusion.loss(denoise, keys(6), x, label, **arguments)
  part = diffusion.loss(denoise, keys(6)[2:4], x[2:4], label[2:4], **arguments)
  np.testing.assert_array_equal(whole[2:4], part)


# Guidance.


def fake(z, logsnr, label):
  """Predict the label, ten times for the null label: exact numbers."""
  value = jnp.where(label == NULL, 100.0, label.astype(jnp.float32))
  return diffusion.Prediction(jnp.broadcast_to(value[:, None], z.shape))


def guided(w, two_passes, denoise=fake):
  guide = diffusion.classifier_free_guidance(
    denoise, w, null_label=NULL, two_passes=two_passes
  )
  z = jnp.zeros((3, 2))
  return jax.jit(guide)(z, jnp.zeros(3), jnp.array([1, 2, 3])).eps[:, 0]


@pytest.mark.parametrize("two_passes", [False, True])
def test_guidance_is_equation_6(two_passes):
  absolute(guided(0.5, two_passes), [1.5 - 50, 3 - 50, 4.5 - 50])
  absolute(guided(-1.0, two_passes), [100, 100, 100])
  absolute(guided(0.0, two_passes), [1, 2, 3])


@pytest.mark.parametrize("two_passes", [False, True])
def test_guidance_takes_one_w_per_sample(two_passes):
  w = jnp.array([0.0, 1.0, -1.0])
  absolute(guided(w, two_passes), [1, 4 - 100, 100])


@pytest.mark.parametrize("two_passes", [False, True])
def test_no_null_pass_at_w_zero(two_passes):
  def broken_null(z, logsnr, label):
    eps = fake(z, logsnr, label).eps
    return diffusion.Prediction(
      jnp.where((label == NULL)[:, None], jnp.nan, eps)
    )

  absolute(guided(0.0, two_passes, broken_null), [1, 2, 3])
  assert np.isnan(guided(0.1, two_passes, broken_null)).all()


def test_guidance_passes_on_the_conditional_v():
  def with_v(z, logsnr, label):
    eps = fake(z, logsnr, label).eps
    return diffusion.Prediction(eps, eps / 200)

  for two_passes in (False, True):
    guide = diffusion.classifier_free_guidance(
      with_v, 0.5, null_label=NULL, two_passes=two_passes
    )
    prediction = guide(jnp.zeros((2, 1)), jnp.zeros(2), jnp.array([4, 8]))
    absolute(prediction.v[:, 0], [0.02, 0.04])


def test_denoiser_feeds_adm_times():
  seen = []
  denoise = diffusion.denoiser(
    lambda z, time, label: seen.append(time) or z, **RANGE
  )
  denoise(jnp.zeros((3, 1)), jnp.array([20.0, 0.0, -20.0]), jnp.zeros(3))
  absolute(seen[0], [0, 500, 1000], atol=2e-4)


# Samplers, with the exact eps of a Gaussian.


def gaussian_eps(mean, std):
  """Return the exact DenoiseFn of data N(mean, std^2 I)."""

  def denoise(z, logsnr, label):
    alpha, sigma = diffusion.alpha_sigma(logsnr)
    alpha, sigma = alpha[:, None], sigma[:, None]
    # (z - alpha x) / sigma with x = E[x | z], simplified: no cancellation.
    variance = alpha**2 * std**2 + sigma**2
    return diffusion.Prediction(sigma * (z - alpha * mean) / variance)

  return denoise


@pytest.fixture(scope="module")
def models(chain):
  conditional = gaussian_eps(np.float32(chain["m"]), np.float32(chain["s"]))
  unconditional = gaussian_eps(np.float32(chain["m0"]), np.float32(chain["s0"]))

  def both(z, logsnr, label):
    null = (label == NULL)[:, None]
    return diffusion.Prediction(
      jnp.where(
        null,
        unconditional(z, logsnr, label).eps,
        conditional(z, logsnr, label).eps,
      )
    )

  return both


def predictor(denoise, *, threshold=diffusion.no_threshold, v=0.3):
  return diffusion.predictor(denoise, threshold=threshold, v=v)


def guide(models, w):
  return diffusion.classifier_free_guidance(
    models, w, null_label=NULL, two_passes=True
  )


def test_exact_eps_matches_reference(chain, models):
  for logsnr, desired in zip(
    chain["eps_lambda"], chain["eps_value"], strict=True
  ):
    z = np.float32(chain["eps_z"])
    eps = models(z, jnp.full(3, np.float32(logsnr)), jnp.zeros(3, int)).eps
    absolute(eps, desired, atol=1e-5)


def moments(denoise, logsnrs, step_moments):
  """Follow mean and variance of z through a linear sampler.

  The mean moves as a sample without noise does, the variance by the square of
  the step's derivative plus the noise's variance.
  """

  @jax.jit
  def advance(mean, variance, logsnr_from, logsnr_to):
    move, noise = step_moments(predict, logsnr_from, logsnr_to, label)
    mean, slope = jax.jvp(move, (mean,), (jnp.ones_like(mean),))
    return mean, slope[0, 0] ** 2 * variance + noise

  label = jnp.zeros(1, jnp.int32)
  predict = predictor(denoise)
  mean, variance = jnp.zeros((1, 2)), jnp.ones(())
  means, variances = [mean[0]], [variance]
  for logsnr_from, logsnr_to in itertools.pairwise(logsnrs):
    mean, variance = advance(mean, variance, logsnr_from, logsnr_to)
    means.append(mean[0])
    variances.append(variance)

  def last(z):
    return predict(z, logsnrs[-1], label)[0]

  mean, slope = jax.jvp(last, (mean,), (jnp.ones_like(mean),))
  means.append(mean[0])
  variances.append(slope[0, 0] ** 2 * variance)
  return np.array(means), np.array(variances)


def ancestral_moments(v):
  def step_moments(predict, logsnr_from, logsnr_to, label):
    noise = jnp.exp(
      diffusion.reverse_log_variance(
        logsnr_from=logsnr_from, logsnr_to=logsnr_to, v=v
      )
    )

    def move(z):
      # The step draws its noise from the key: taking the same draw away
      # leaves the mean.
      drawn = diffusion.normal(keys(1), (2,)) * jnp.sqrt(noise)
      x, _ = predict(z, logsnr_from, label)
      arguments = keys(1), z, x, v, logsnr_from, logsnr_to
      return diffusion.ancestral_step(*arguments) - drawn

    return move, noise

  return step_moments


def ddim_moments(predict, logsnr_from, logsnr_to, label):
  def move(z):
    x, v = predict(z, logsnr_from, label)
    return diffusion.ddim_step(keys(1), z, x, v, logsnr_from, logsnr_to)

  return move, 0.0


def check_chain(chain, name, means, variances):
  absolute(means, chain[f"{name}_mean"], atol=1e-5)
  if variances is not None:
    relative(variances, chain[f"{name}_var"], rtol=1e-4)


def name_of(chain, num_steps, v):
  (name,) = {
    key.removesuffix("_mean")
    for key in chain.files
    if key.startswith(f"ancestral_T{num_steps}_v")
    and key.endswith("_mean")
    and "xhat" not in key
    and float(key.split("_")[2][1:]) == v
  }
  return name


CHAINS = [
  *[(num_steps, 0.3) for num_steps in (2, 3, 16, 64, 256)],
  *[(64, v) for v in (0.0, 0.2, 1.0)],
]


@pytest.mark.parametrize(("num_steps", "v"), CHAINS)
def test_ancestral_chain(chain, models, num_steps, v):
  grid = diffusion.logsnr_grid(num_steps, **RANGE)
  means, variances = moments(models, grid, ancestral_moments(v))
  name = name_of(chain, num_steps, v)
  if num_steps == 2:
    # From lambda = -20 straight to 20, x = (z - sigma eps) / alpha divides
    # eps's last float32 digit by 4.5e-5: the variance, 8e-7, is out of reach
    # (the float64 test below has it).
    variances = None
  check_chain(chain, name, means, variances)


@pytest.mark.parametrize("num_steps", [2, 3, 16, 64, 256])
def test_ddim_chain(chain, models, num_steps):
  grid = diffusion.logsnr_grid(num_steps, **RANGE)
  means, variances = moments(models, grid, ddim_moments)
  name = f"ddim_T{num_steps}"
  if num_steps == 2:  # as above
    variances = None
  check_chain(chain, name, means, variances)


@pytest.mark.slow
def test_chains_in_float64(chain):
  with jax.enable_x64(True):
    model = gaussian_eps(chain["m"], chain["s"])
    for num_steps, v in CHAINS:
      grid = diffusion.logsnr_grid(num_steps, **RANGE)
      means, variances = moments(model, grid, ancestral_moments(v))
      name = name_of(chain, num_steps, v)
      absolute(means, chain[f"{name}_mean"], atol=1e-9)
      relative(variances, chain[f"{name}_var"], rtol=1e-6)
      means, variances = moments(model, grid, ddim_moments)
      absolute(means, chain[f"ddim_T{num_steps}_mean"], atol=1e-9)
      relative(variances, chain[f"ddim_T{num_steps}_var"], rtol=1e-6)


@pytest.mark.parametrize("w", [0.1, 0.5, 2])
def test_guided_chains(chain, models, w):
  grid = diffusion.logsnr_grid(64, **RANGE)
  denoise = guide(models, w)
  check_chain(
    chain,
    f"guided_w{w:g}_ancestral_T64_v0.3",
    *moments(denoise, grid, ancestral_moments(0.3)),
  )
  check_chain(
    chain, f"guided_w{w:g}_ddim_T64", *moments(denoise, grid, ddim_moments)
  )


@pytest.mark.parametrize("w", [0.0, 0.5])
def test_scan_sampler_draws_the_exact_distribution(chain, models, w):
  number = 40_000
  x = jax.jit(
    lambda keys, label, logsnrs: diffusion.sample(
      diffusion.ancestral_step,
      predictor(guide(models, w)),
      keys,
      label,
      shape=(2,),
      logsnrs=logsnrs,
    )
  )(keys(number), jnp.zeros(number, int), diffusion.logsnr_grid(64, **RANGE))
  prefix = f"guided_w{w:g}_" if w else ""
  name = f"{prefix}ancestral_T64_v0.3"
  mean, variance = chain[f"{name}_mean"][-1], chain[f"{name}_var"][-1]
  absolute(x.mean(axis=0), mean, atol=4 * np.sqrt(variance / number))
  relative(x.var(axis=0).mean(), variance, rtol=4 / np.sqrt(number))


@pytest.mark.parametrize("num_steps", [2, 3, 16, 64, 256])
def test_ddim_follows_the_reference_path(chain, num_steps):
  with jax.enable_x64(True):
    predict = predictor(gaussian_eps(chain["m"], chain["s"]))

    @jax.jit
    def step(z, logsnr_from, logsnr_to):
      move, _ = ddim_moments(predict, logsnr_from, logsnr_to, jnp.zeros(1, int))
      return move(z)

    grid = diffusion.logsnr_grid(num_steps, **RANGE)
    path = [jnp.array(chain["z1"])[None]]
    for pair in itertools.pairwise(grid):
      path.append(step(path[-1], *pair))
    desired = chain[f"ddim_T{num_steps}_path"][:-1]
    absolute(np.concatenate(path), desired, atol=1e-9)


def test_an_image_depends_on_its_own_key_alone(models):
  def draw(index):
    return diffusion.sample(
      diffusion.ancestral_step,
      predictor(models),
      diffusion.image_keys(7, index),
      jnp.zeros(len(index), int),
      shape=(2,),
      logsnrs=diffusion.logsnr_grid(8, **RANGE),
    )

  whole = draw(np.arange(8))
  np.testing.assert_array_equal(draw(np.array([5, 2])), whole[np.array([5, 2])])
  assert len(np.unique(whole[:, 0])) == 8


def test_transitions_lie_between_the_evaluations(models):
  """T evaluations, T - 1 transitions; the sample is the last x."""
  evaluated, moved = [], []
  predict = predictor(models)

  def predict_watched(z, logsnr, label):
    jax.debug.callback(lambda *seen: evaluated.append(seen), logsnr, z)
    return predict(z, logsnr, label)

  def step(keys, z, x, v, *pair):
    jax.debug.callback(lambda *pair: moved.append(pair), *pair)
    return diffusion.ancestral_step(keys, z, x, v, *pair)

  grid = diffusion.logsnr_grid(5, **RANGE)
  with jax.debug_nans(True):
    x = diffusion.sample(
      *(step, predict_watched, keys(3), jnp.zeros(3, int)),
      shape=(2,),
      logsnrs=grid,
    )
    jax.effects_barrier()
  by_level = sorted(evaluated, key=lambda seen: seen[0])
  np.testing.assert_array_equal([logsnr for logsnr, _ in by_level], grid)
  assert sorted(moved) == list(itertools.pairwise(np.asarray(grid)))
  first, last = by_level[0][1], by_level[-1][1]
  start = diffusion.normal(diffusion.fold_in(keys(3), 0), (2,))
  np.testing.assert_array_equal(first, start)
  absolute(x, predict(last, grid[-1], jnp.zeros(3, int))[0])


def test_own_v_replaces_the_constant():
  def with_v(z, logsnr, label):
    return diffusion.Prediction(jnp.zeros_like(z), jnp.ones_like(z))

  def step(denoise, v):
    z = jnp.ones((3, 2))
    x, v = predictor(denoise, v=v)(z, -1.0, jnp.zeros(3, int))
    return diffusion.ancestral_step(keys(3), z, x, v, -1.0, 1.0)

  large = step(lambda z, *_: diffusion.Prediction(jnp.zeros_like(z)), 1.0)
  absolute(step(with_v, 0.0), large, atol=1e-6)
  alone = diffusion.without_own_v(with_v)
  np.testing.assert_array_equal(step(alone, 1.0), large)
  assert (step(alone, 0.0) != large).all()


def test_clipping_bounds_every_sample():
  def wild(z, logsnr, label):
    return diffusion.Prediction(-50.0 * z)

  for step in diffusion.STEPS.values():
    x = diffusion.sample(
      step,
      predictor(wild, threshold=diffusion.clip),
      keys(5),
      jnp.zeros(5, int),
      shape=(3,),
      logsnrs=diffusion.logsnr_grid(16, **RANGE),
    )
    assert np.isfinite(x).all()
    assert np.abs(x).max() <= 1


def test_a_nan_is_not_hidden():
  def broken(z, logsnr, label):
    return diffusion.Prediction(jnp.full_like(z, jnp.nan))

  x = diffusion.sample(
    diffusion.ancestral_step,
    predictor(broken, threshold=diffusion.clip),
    keys(2),
    jnp.zeros(2, int),
    shape=(1,),
    logsnrs=diffusion.logsnr_grid(4, **RANGE),
  )
  assert np.isnan(x).all()


def test_import_is_light():
  script = (
    "import sys, cfgd.diffusion; "
    "print([m for m in ('flax', 'tensorflow', 'torch') if m in sys.modules])"
  )
  printed = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, check=True
  )
  assert printed.stdout.strip() == "[]"
