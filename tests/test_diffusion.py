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

SCHEDULE = diffusion.Schedule(-20.0, 20.0)
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
  absolute(jax.jit(SCHEDULE.logsnr)(u), math["lambda_of_u_f32exact"])


def test_schedule_near_one():
  # lambda(1 - 1e-6), with the float32 that is nearest to it, in float64.
  u = np.float32(1 - 1e-6)
  b = np.arctan(np.exp(-10.0))
  a = np.arctan(np.exp(10.0)) - b
  complement = np.float64(a) * (1 - np.float64(u)) + b
  absolute(SCHEDULE.logsnr(u), 2 * np.log(np.tan(complement)))


def test_schedule_of_other_ranges(math):
  for (low, high), desired in zip(
    math["ranges"], math["ranges_lambda"], strict=True
  ):
    schedule = diffusion.Schedule(low, high)
    absolute(schedule.logsnr(np.float32(math["ranges_u"])), desired)


@pytest.mark.parametrize("num_steps", [2, 3, 16, 64, 128, 256, 1024])
def test_grid_matches_reference(math, num_steps):
  grid = SCHEDULE.grid(num_steps)
  absolute(grid, math[f"sampler_lambda_T{num_steps}"])
  assert (np.diff(grid) > 0).all()


def test_inverse_of_the_schedule(math):
  logsnr = np.float32(math["lam"])
  absolute(SCHEDULE.u(logsnr), math["u_of_lambda"], atol=5e-7)


# Coefficients.


def test_alpha_sigma(math):
  for suffix in ("", "_ext"):
    alpha, sigma = diffusion.alpha_sigma(np.float32(math[f"lam{suffix}"]))
    relative(alpha, math[f"alpha{suffix}"])
    relative(sigma, math[f"sigma{suffix}"])


def test_alpha_sigma_of_the_schedule(math):
  u = np.float32(math["u_f32exact"])
  alpha, sigma = diffusion.alpha_sigma(SCHEDULE.logsnr(u))
  relative(alpha, math["alpha_of_u_f32exact"])
  relative(sigma, math["sigma_of_u_f32exact"])


@pytest.fixture(scope="module")
def pairs(math):
  return {
    "logsnr": np.float32(math["pair_lam"]),
    "logsnr_next": np.float32(math["pair_lamp"]),
  }


def test_pairs_hold_small_gaps(pairs):
  gaps = pairs["logsnr_next"].astype(np.float64) - pairs["logsnr"]
  assert (gaps > 0).all()
  assert gaps.min() < 1e-4


def test_posterior(math, pairs):
  reverse = jax.jit(diffusion.reverse)
  relative(reverse(1.0, 0.0, 0.0, **pairs)[0], math["pair_coef_z"])
  mean, variance = reverse(0.0, 1.0, 0.0, **pairs)
  relative(mean, math["pair_coef_x"])
  relative(variance, math["pair_var_post"])
  absolute(jnp.log(variance), math["pair_log_var_post"], atol=1e-5)


def test_the_other_end_is_the_variance_of_the_transition(math, pairs):
  _, variance = jax.jit(diffusion.reverse)(0.0, 0.0, 1.0, **pairs)
  relative(variance, math["pair_var_fwd"])
  absolute(jnp.log(variance), math["pair_log_var_fwd"], atol=1e-5)


@pytest.mark.parametrize("index", range(4))
def test_reverse_variance(math, pairs, index):
  v = np.float32(math["v_values"][index])
  _, variance = jax.jit(diffusion.reverse)(0.0, 0.0, v, **pairs)
  relative(variance, math["pair_var_v"][index])
  absolute(jnp.log(variance), math["pair_log_var_v"][index], atol=1e-5)


def test_conversions_are_inverse():
  x, eps = np.random.default_rng(0).standard_normal((2, 5, 4, 4, 3), np.float32)
  logsnr = np.float32([-6, -1, 0, 2, 6])
  z = diffusion.diffuse(x, eps, logsnr)
  absolute(diffusion.x_from_eps(z, eps, logsnr), x, atol=2e-5)


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
  arguments = {"p_uncond": 0.1, "null_label": NULL, "schedule": SCHEDULE}
  arguments |= changes
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
    alpha, sigma = diffusion.alpha_sigma(logsnr)
    return diffusion.Prediction((z - alpha[:, None] * x) / sigma[:, None])

  # x does not depend on the denoiser: take it, then use it. At the clean end
  # eps is the small difference of z and x: rounding of z, 6e-8, over sigma.
  _, x = loss_of(lambda z, *_: diffusion.Prediction(z))
  values, _ = loss_of(denoise, schedule=diffusion.Schedule(-8.0, 8.0))
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
  exact = SCHEDULE.logsnr(jnp.array([0.75, 0.5, 0.25]))
  absolute(quartiles, exact, atol=0.2)


def test_loss_of_an_example_ignores_the_others():
  def denoise(z, logsnr, label):
    return diffusion.Prediction(z * label[:, None])

  x = np.random.default_rng(1).standard_normal((6, 2), np.float32)
  label = jnp.arange(6)
  arguments = {"p_uncond": 0.3, "null_label": NULL, "schedule": SCHEDULE}
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


LABEL = jnp.zeros(1, jnp.int32)


def one_transition(sampler, predict, z, pair, **numbers):
  """Return z at the second of two log-SNRs: what is predicted there is z."""

  def predict_z(z, logsnr, label):
    x, v = predict(z, logsnr, label)
    return jnp.where(logsnr == pair[0], x, z), v

  return sampler(predict_z, keys(1), z, LABEL, jnp.stack(pair), **numbers)


def nothing(z, logsnr, label):
  """Predict x = 0: where z is 0, too, a transition adds its noise alone."""
  return diffusion.Prediction(
    z / diffusion.expand(diffusion.alpha_sigma(logsnr)[1], z)
  )


def moments(sampler, denoise, logsnrs, v=0.3):
  """Follow mean and variance of z through a sampler that is linear in z.

  The mean moves as z without noise does, the variance by the square of the
  transition's derivative plus the variance of its noise.
  """
  silent = {"noise_scale": 0.0} if sampler is diffusion.ancestral else {}
  drawn = diffusion.normal(diffusion.fold_in(keys(1), 1), (2,))
  predict = predictor(denoise, v=v)

  @jax.jit
  def advance(mean, variance, *pair):
    def move(z):
      return one_transition(sampler, predict, z, pair, **silent)

    at_rest = predictor(nothing, v=v), jnp.zeros((1, 2))
    noise = (one_transition(sampler, *at_rest, pair) / drawn)[0, 0] ** 2
    mean, slope = jax.jvp(move, (mean,), (jnp.ones_like(mean),))
    return mean, slope[0, 0] ** 2 * variance + noise

  mean, variance = jnp.zeros((1, 2)), jnp.ones(())
  means, variances = [mean[0]], [variance]
  for pair in itertools.pairwise(logsnrs):
    mean, variance = advance(mean, variance, *pair)
    means.append(mean[0])
    variances.append(variance)

  def last(z):
    return predict(z, logsnrs[-1], LABEL)[0]

  mean, slope = jax.jvp(last, (mean,), (jnp.ones_like(mean),))
  means.append(mean[0])
  variances.append(slope[0, 0] ** 2 * variance)
  return np.array(means), np.array(variances)


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
  grid = SCHEDULE.grid(num_steps)
  means, variances = moments(diffusion.ancestral, models, grid, v)
  name = name_of(chain, num_steps, v)
  if num_steps == 2:
    # From lambda = -20 straight to 20, x = (z - sigma eps) / alpha divides
    # eps's last float32 digit by 4.5e-5: the variance, 8e-7, is out of reach
    # (the float64 test below has it).
    variances = None
  check_chain(chain, name, means, variances)


@pytest.mark.parametrize("num_steps", [2, 3, 16, 64, 256])
def test_ddim_chain(chain, models, num_steps):
  grid = SCHEDULE.grid(num_steps)
  means, variances = moments(diffusion.ddim, models, grid)
  name = f"ddim_T{num_steps}"
  if num_steps == 2:  # as above
    variances = None
  check_chain(chain, name, means, variances)


@pytest.mark.slow
def test_chains_in_float64(chain):
  with jax.enable_x64(True):
    model = gaussian_eps(chain["m"], chain["s"])
    for num_steps, v in CHAINS:
      grid = SCHEDULE.grid(num_steps)
      means, variances = moments(diffusion.ancestral, model, grid, v)
      name = name_of(chain, num_steps, v)
      absolute(means, chain[f"{name}_mean"], atol=1e-9)
      relative(variances, chain[f"{name}_var"], rtol=1e-6)
      means, variances = moments(diffusion.ddim, model, grid)
      absolute(means, chain[f"ddim_T{num_steps}_mean"], atol=1e-9)
      relative(variances, chain[f"ddim_T{num_steps}_var"], rtol=1e-6)


@pytest.mark.parametrize("w", [0.1, 0.5, 2])
def test_guided_chains(chain, models, w):
  grid = SCHEDULE.grid(64)
  denoise = guide(models, w)
  check_chain(
    chain,
    f"guided_w{w:g}_ancestral_T64_v0.3",
    *moments(diffusion.ancestral, denoise, grid),
  )
  check_chain(
    chain, f"guided_w{w:g}_ddim_T64", *moments(diffusion.ddim, denoise, grid)
  )


def start(number, shape=(2,), seed=0):
  """Return (keys, z) of images 0, 1, ..."""
  own = diffusion.image_keys(seed, np.arange(number))
  return own, diffusion.normal(diffusion.fold_in(own, 0), shape)


@pytest.mark.parametrize("w", [0.0, 0.5])
def test_scan_sampler_draws_the_exact_distribution(chain, models, w):
  number = 40_000
  predict = predictor(guide(models, w))
  x = jax.jit(functools.partial(diffusion.ancestral, predict))(
    *start(number), jnp.zeros(number, int), SCHEDULE.grid(64)
  )
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
    def step(z, *pair):
      return one_transition(diffusion.ddim, predict, z, pair)

    grid = SCHEDULE.grid(num_steps)
    path = [jnp.array(chain["z1"])[None]]
    for pair in itertools.pairwise(grid):
      path.append(step(path[-1], *pair))
    path.append(diffusion.ddim(predict, None, path[0], LABEL, grid))
    absolute(np.concatenate(path), chain[f"ddim_T{num_steps}_path"], atol=1e-9)


def test_an_image_depends_on_its_own_key_alone(models):
  own, z = start(8, seed=7)

  def draw(rows):
    label = jnp.zeros(len(rows), int)
    predict, grid = predictor(models), SCHEDULE.grid(8)
    return diffusion.ancestral(predict, own[rows], z[rows], label, grid)

  whole = draw(np.arange(8))
  np.testing.assert_array_equal(draw(np.array([5, 2])), whole[np.array([5, 2])])
  assert len(np.unique(whole[:, 0])) == 8


def test_transitions_lie_between_the_evaluations(models):
  """T evaluations, T - 1 transitions with their noise; the sample is x."""
  evaluated = []
  predict = predictor(models)

  def predict_watched(z, logsnr, label):
    jax.debug.callback(lambda *seen: evaluated.append(seen), logsnr, z)
    return predict(z, logsnr, label)

  grid, label = SCHEDULE.grid(5), jnp.zeros(3, int)
  own, z = start(3)
  with jax.debug_nans(True):
    x = diffusion.ancestral(predict_watched, own, z, label, grid)
    jax.effects_barrier()
  evaluated.sort(key=lambda seen: seen[0])
  np.testing.assert_array_equal([logsnr for logsnr, _ in evaluated], grid)
  np.testing.assert_array_equal(evaluated[0][1], z)
  for t, ((here, z), (after, z_next)) in enumerate(
    itertools.pairwise(evaluated), start=1
  ):
    mean, variance = diffusion.reverse(
      *(z, *predict(z, here, label)), logsnr=here, logsnr_next=after
    )
    noise = diffusion.normal(diffusion.fold_in(own, t), (2,))
    absolute(z_next, mean + jnp.sqrt(variance) * noise)
  absolute(x, predict(evaluated[-1][1], grid[-1], label)[0])


def test_own_v_replaces_the_constant():
  def with_v(z, logsnr, label):
    return diffusion.Prediction(jnp.zeros_like(z), jnp.ones_like(z))

  def step(denoise, v):
    predict, z = predictor(denoise, v=v), jnp.ones((1, 2))
    return one_transition(diffusion.ancestral, predict, z, (-1.0, 1.0))

  large = step(lambda z, *_: diffusion.Prediction(jnp.zeros_like(z)), 1.0)
  absolute(step(with_v, 0.0), large, atol=1e-6)


@pytest.mark.parametrize("sampler", [diffusion.ancestral, diffusion.ddim])
def test_clipping_bounds_every_sample(sampler):
  def wild(z, logsnr, label):
    return diffusion.Prediction(-50.0 * z)

  predict = predictor(wild, threshold=diffusion.clip)
  x = sampler(predict, *start(5), jnp.zeros(5, int), SCHEDULE.grid(16))
  assert np.isfinite(x).all()
  assert np.abs(x).max() <= 1


def test_a_nan_is_not_hidden():
  def broken(z, logsnr, label):
    return diffusion.Prediction(jnp.full_like(z, jnp.nan))

  predict = predictor(broken, threshold=diffusion.clip)
  x = diffusion.ancestral(
    predict, *start(2), jnp.zeros(2, int), SCHEDULE.grid(4)
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
