"""Every guidance against float64 closed forms, with exact scores of mixtures.

Class c is N(m_c, s_c^2 I) with weight p(c), so model, classifier and their
gradients are known at every log-SNR. The references are NumPy in float64 and
share no code with what they check.
"""

import functools
import itertools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgd import diffusion
from cfgd import guidance
from cfgd.paper import toy

ROOT = pathlib.Path(__file__).parent.parent
SCHEDULE = diffusion.Schedule(-10.0, 10.0)
MIXTURE = toy.Mixture(
  means=np.array([[1, 0.2, 0.5, 0], [-0.7, 0.8, 0, -1], [0.1, -1.1, 1, 0.3]]),
  stds=np.array([0.5, 0.8, 0.3]),
  weights=np.array([0.5, 0.2, 0.3]),
)
WEAK = MIXTURE._replace(stds=MIXTURE.stds + 0.5)
NULL = 3
T = 7
LABEL = np.int32([0, 1, 2, 2, 1])
LOGSNR = np.float32([-8.0, -2.0, 0.0, 3.0, 7.0])
SHAPE = (1, 2, 2)
Z = np.random.default_rng(0).standard_normal((5, *SHAPE)).astype(np.float32)

# Made here: inside of a jitted function they would be traced.
GRID = np.asarray(SCHEDULE.grid(T))
KEYS = diffusion.image_keys(0, np.arange(5))
NOISE = np.asarray(
  [diffusion.normal(diffusion.fold_in(KEYS, k), SHAPE) for k in range(T)],
  np.float64,
)

EXACT = toy.denoiser(MIXTURE)
LOG_PROBS = toy.log_probs(MIXTURE)


def by_classifier(denoise, w, log_probs=LOG_PROBS):
  score = guidance.classifier_score(log_probs, w)
  return guidance.classifier_guidance(denoise, score)


def close(actual, desired, atol=5e-6):
  np.testing.assert_allclose(
    np.asarray(actual, np.float64), desired, atol=atol, rtol=5e-6
  )


def free(denoise, w, **changes):
  arguments = {"null_label": NULL, "two_passes": True} | changes
  return diffusion.classifier_free_guidance(denoise, w, **arguments)


def predictor(denoise, threshold=diffusion.no_threshold):
  return diffusion.predictor(denoise, threshold=threshold, v=0.3)


def eps_of(*denoisers):
  """Return the eps of each, compiled together."""
  run = jax.jit(lambda *inputs: [one(*inputs).eps for one in denoisers])
  found = run(Z, LOGSNR, LABEL)
  return found if len(denoisers) > 1 else found[0]


# References.


def alpha_sigma(logsnr):
  logsnr = np.float64(logsnr)
  return (1 + np.exp(-logsnr)) ** -0.5, (1 + np.exp(logsnr)) ** -0.5


def parts(z, logsnr, mixture=MIXTURE):
  """Return eps(z, c) of every class [B, K, 4] and p(c | z) [B, K]."""
  z = np.float64(z).reshape(-1, 1, 4)
  alpha, sigma = (s[:, None] for s in alpha_sigma(logsnr))
  variance = alpha**2 * mixture.stds**2 + sigma**2
  offset = z - alpha[..., None] * mixture.means
  joint = np.log(mixture.weights) - 2 * np.log(variance)
  joint -= 0.5 * (offset**2).sum(axis=-1) / variance
  joint = np.exp(joint - joint.max(axis=1, keepdims=True))
  eps = sigma[..., None] * offset / variance[..., None]
  return eps, joint / joint.sum(axis=1, keepdims=True)


def reference_eps(z, logsnr, label, mixture=MIXTURE):
  """Return (eps(z, c), eps(z)), [B, 1, 2, 2] each."""
  eps, posterior = parts(z, logsnr, mixture)
  chosen = eps[np.arange(len(eps)), label]
  marginal = (posterior[..., None] * eps).sum(axis=1)
  return chosen.reshape(z.shape), marginal.reshape(z.shape)


def reference_gradient(z, logsnr, label):
  """Return grad_z log p(c | z): a difference of two scores."""
  eps, eps_null = reference_eps(z, logsnr, label)
  return (eps_null - eps) / alpha_sigma(logsnr)[1].reshape(-1, 1, 1, 1)


def reference_guided(z, logsnr, label, w):
  eps, eps_null = reference_eps(z, logsnr, label)
  w = np.reshape(w, (-1, 1, 1, 1))
  return (1 + w) * eps - w * eps_null


# Classifier guidance.


def test_classifier_and_classifier_free_guidance_agree():
  @jax.jit
  def forms(w):
    null = diffusion.unconditional(EXACT, null_label=NULL)
    guided = (
      free(EXACT, w),
      by_classifier(EXACT, w),
      by_classifier(null, w + 1),
    )
    return [denoise(Z, LOGSNR, LABEL).eps for denoise in guided]

  for w in (0.0, 0.7, 4.0, -1.0, np.arange(5) - 1.0):
    desired = reference_guided(Z, LOGSNR, LABEL, w)
    for eps in forms(jnp.float32(w)):
      close(eps, desired)


def test_classifier_guidance_of_a_gaussian_is_the_product_of_gaussians():
  # N(z; alpha m, a^2) N(t; z, b^2) is a Gaussian of known mean and variance.
  mean, std, target, b = 0.4, 0.5, np.array([2.0, -1.0, 0.5]), 0.6
  one = toy.Mixture(np.full((1, 4), mean), np.array([std]), np.ones(1))

  def log_probs(z, logsnr):
    offset = z[:, None] - jnp.asarray(target)[:, None, None, None]
    return -0.5 * jnp.sum((offset / b) ** 2, axis=(2, 3, 4))

  def unlabelled(z, logsnr, label):
    return toy.denoiser(one)(z, logsnr, jnp.zeros_like(label))

  alpha, sigma = (s.reshape(-1, 1, 1, 1) for s in alpha_sigma(LOGSNR))
  a = alpha**2 * std**2 + sigma**2
  product_variance = 1 / (1 / a + 1 / b**2)
  aim = target[LABEL].reshape(-1, 1, 1, 1)
  product_mean = product_variance * (alpha * mean / a + aim / b**2)
  guided = by_classifier(unlabelled, 1.0, log_probs)
  close(eps_of(guided), sigma * (Z - product_mean) / product_variance)


def test_the_two_guidances_wrap_each_other():
  inside = by_classifier(EXACT, 1.5)
  around, *insides = eps_of(
    by_classifier(free(EXACT, 0.5), 1.5),
    free(inside, 0.5, two_passes=False),
    free(inside, 0.5, two_passes=True),
  )
  close(around, reference_guided(Z, LOGSNR, LABEL, 0.5 + 1.5))
  for eps in insides:
    close(eps, reference_guided(Z, LOGSNR, LABEL, 0.5 + 1.5 * 1.5))


def test_the_score_of_labels():
  score = jax.jit(guidance.classifier_score(LOG_PROBS, 2.0))
  desired = 2 * reference_gradient(Z, LOGSNR, LABEL)
  close(score(Z, LOGSNR, LABEL), desired)
  null = np.full(5, NULL)  # any class: of probability 1
  np.testing.assert_array_equal(score(Z, LOGSNR, null), 0.0)


def one_step(sampler, denoise, logsnr_next=0.5, **numbers):
  """Return z after a transition from log-SNR -0.5, from Z."""
  predict = predictor(denoise)

  def predict_z(z, logsnr, label):
    x, v = predict(z, logsnr, label)
    return jnp.where(logsnr == -0.5, x, z), v

  grid = jnp.stack([-0.5, logsnr_next])
  return sampler(predict_z, KEYS, Z, LABEL, grid, **numbers)


def reverse(logsnr_from, logsnr_to, v):
  """Return (coefficient of z, of x, variance), eq. 3 and 4."""
  alpha_from, sigma_from = alpha_sigma(logsnr_from)
  alpha_to, sigma_to = alpha_sigma(logsnr_to)
  ratio = np.exp(np.float64(logsnr_from) - logsnr_to)
  variance = (1 - ratio) * sigma_to ** (2 - 2 * v) * sigma_from ** (2 * v)
  return ratio * alpha_to / alpha_from, (1 - ratio) * alpha_to, variance


def shifted(denoise, w, **arguments):
  score = guidance.classifier_score(LOG_PROBS, w)
  return one_step(
    diffusion.ancestral_mean_shift, denoise, score=score, **arguments
  )


@pytest.mark.parametrize("own", [False, True])
def test_mean_shift_is_w_sigma_gradient(own):
  per_pixel = np.random.default_rng(1).uniform(size=Z.shape)

  def denoise(z, logsnr, label):
    v = jnp.float32(per_pixel) if own else None
    return EXACT(z, logsnr, label)._replace(v=v)

  @jax.jit
  def both(w):
    return one_step(diffusion.ancestral, denoise), shifted(denoise, w)

  w = np.float32([0.0, 1.0, 2.0, -1.0, 0.5])
  plain, moved = both(w)
  variance = reverse(-0.5, 0.5, per_pixel if own else 0.3)[-1]
  shift = reference_gradient(Z, np.full(5, -0.5), LABEL) * variance
  close(moved - plain, w[:, None, None, None] * shift)
  np.testing.assert_array_equal(*both(np.zeros(5, np.float32)))


def test_mean_shift_is_the_eps_form_of_small_steps():
  by_eps = by_classifier(EXACT, 2.0)

  @jax.jit
  def difference(gap):
    there = {"logsnr_next": -0.5 + gap}
    plain = one_step(diffusion.ancestral, EXACT, **there)
    moved = shifted(EXACT, 2.0, **there)
    guided = one_step(diffusion.ancestral, by_eps, **there)
    return jnp.abs((moved - plain) / (guided - plain) - 1).max()

  coarse, fine = difference(0.1), difference(0.01)
  assert 0 < fine < 0.12 * coarse < 0.01, (fine, coarse)


# Low temperatures.


def test_scaled_score_is_a_power_of_the_density():
  # N(z; m, a)^2 is N(z; m, a / 2), not normalised.
  alpha, sigma = (s.reshape(-1, 1, 1, 1) for s in alpha_sigma(LOGSNR))
  means = alpha * MIXTURE.means[LABEL].reshape(Z.shape)
  stds = MIXTURE.stds[LABEL].reshape(-1, 1, 1, 1)
  half = (alpha**2 * stds**2 + sigma**2) / 2
  scaled = eps_of(guidance.scale_score(EXACT, 2.0))
  close(scaled, sigma * (Z - means) / half)


def test_noise_scale_multiplies_the_noise_alone():
  step = jax.jit(functools.partial(one_step, diffusion.ancestral, EXACT))
  on_z, on_x, variance = reverse(-0.5, 0.5, 0.3)
  alpha, sigma = alpha_sigma(-0.5)
  eps = reference_eps(Z, np.full(5, -0.5), LABEL)[0]
  mean = on_z * Z + on_x * (Z - sigma * eps) / alpha
  for scale in (0.0, 0.6, 1.0):
    moved = step(noise_scale=scale)
    close(moved, mean + scale * np.sqrt(variance) * NOISE[1])
  close(step(), step(noise_scale=1.0))


# The unconditional model.


def test_marginal_of_the_conditional_models():
  marginal = guidance.marginal(EXACT, LOG_PROBS)
  null = diffusion.unconditional(EXACT, null_label=NULL)
  summed, own, guided = eps_of(
    marginal, null, diffusion.guide_away(EXACT, marginal, 1.5)
  )
  desired = reference_eps(Z, LOGSNR, LABEL)[1]
  close(summed, desired)
  close(own, desired)
  close(guided, reference_guided(Z, LOGSNR, LABEL, 1.5))


def test_marginal_averages_v():
  def denoise(z, logsnr, label):
    v = jnp.broadcast_to(label[:, None, None, None] / 2.0, z.shape)
    return EXACT(z, logsnr, label)._replace(v=v)

  marginal = jax.jit(guidance.marginal(denoise, LOG_PROBS))
  v = marginal(Z, LOGSNR, LABEL).v
  desired = parts(Z, LOGSNR)[1] @ [0, 0.5, 1]
  close(v, np.broadcast_to(desired[:, None, None, None], Z.shape))


# After the paper.


def test_weights_of_the_schedule():
  u = np.linspace(1, 0, T)  # of the sampler's grid
  constant, linear, cosine = jax.jit(
    lambda logsnr: (
      guidance.constant(1.5, schedule=SCHEDULE)(logsnr),
      guidance.linear(1.5, schedule=SCHEDULE)(logsnr),
      guidance.cosine(1.5, schedule=SCHEDULE)(logsnr),
    )
  )(GRID)
  close(constant, np.full(T, 1.5))
  close(linear, 3 * (1 - u))
  close(cosine, 1.5 * (1 + np.cos(np.pi * u)))
  close([linear.mean(), cosine.mean()], [1.5, 1.5])


def test_interval_is_half_open():
  weight = guidance.interval(
    guidance.constant(2.0, schedule=SCHEDULE), low=-1.0, high=3.0
  )
  logsnr = jnp.array([-1.1, -1.0, 0.0, 2.9, 3.0, 9.0])
  np.testing.assert_array_equal(weight(logsnr), [0, 2, 2, 2, 0, 0])


def scheduled(guide, weight):
  """Guide by a strength that depends on the log-SNR."""
  return lambda z, logsnr, label: guide(weight(logsnr))(z, logsnr, label)


def test_weights_of_the_schedule_reach_every_sample():
  weight = guidance.linear(jnp.arange(5.0), schedule=SCHEDULE)
  guided = scheduled(functools.partial(free, EXACT), weight)
  u = SCHEDULE.u(LOGSNR)
  desired = np.arange(5) * 2 * (1 - np.float64(u))
  close(eps_of(guided), reference_guided(Z, LOGSNR, LABEL, desired))


def test_autoguidance_leaves_the_weak_model():
  guided = diffusion.guide_away(EXACT, toy.denoiser(WEAK), 0.8)
  eps = reference_eps(Z, LOGSNR, LABEL)[0]
  weak = reference_eps(Z, LOGSNR, LABEL, WEAK)[0]
  close(eps_of(guided), weak + 1.8 * (eps - weak))


def test_rescaled_has_the_contrast_of_the_condition():
  rng = np.random.default_rng(2)
  eps, other = rng.standard_normal((2, 5, 4, 4, 3))
  w = np.array([0.0, 1.0, 2.0, 4.0, -1.0])
  guided = (1 + w) * eps.T - w * other.T
  ratio = eps.T.std(axis=(0, 1, 2)) / guided.std(axis=(0, 1, 2))
  rescaled = functools.partial(
    guidance.rescaled, jnp.float32(eps), jnp.float32(other), jnp.float32(w)
  )
  for phi in (0.0, 0.7, 1.0):
    desired = (phi * ratio * guided + (1 - phi) * guided).T
    close(rescaled(phi=phi), desired)
  full = np.asarray(rescaled(phi=1.0)).reshape(5, -1)
  close(full.std(axis=1), eps.reshape(5, -1).std(axis=1))


def test_rescaling_nothing_is_not_a_nan():
  zero = jnp.zeros((2, 1, 2, 2))
  np.testing.assert_array_equal(guidance.rescaled(zero, zero, 1.0, phi=0.7), 0)


def test_dynamic_threshold_is_the_quantile_of_each_image():
  x = np.random.default_rng(3).standard_normal((3, 4, 4, 2))
  x *= np.reshape([0.1, 1.0, 5.0], (3, 1, 1, 1))
  for quantile in (0.8, 1.0):
    limit = np.quantile(np.abs(x).reshape(3, -1), quantile, axis=1)
    limit = np.maximum(limit, 1).reshape(3, 1, 1, 1)
    actual = guidance.dynamic_threshold(jnp.float32(x), quantile=quantile)
    close(actual, np.clip(x, -limit, limit) / limit)
    np.testing.assert_array_equal(actual[0], np.float32(x[0]))


# What is skipped.


class Counter:
  """Count how often a function runs on the device."""

  def __init__(self):
    self.number = 0

  def around(self, function):
    def counted(z, *rest):
      jax.debug.callback(self._count, z[0, 0, 0, 0])
      return function(z, *rest)

    return counted

  def _count(self, _):
    self.number += 1


def sample(sampler, denoise, threshold=diffusion.no_threshold, **numbers):
  predict = predictor(denoise, threshold)
  z = diffusion.normal(diffusion.fold_in(KEYS, 0), SHAPE)
  return sampler(predict, KEYS, z, LABEL, GRID, **numbers)


by_ddim = functools.partial(sample, diffusion.ddim)


def with_guide(name, other, w):
  """Guide by a classifier or a weaker model that is wrapped by `other`."""
  if name == "classifier":
    return by_classifier(EXACT, w, other(LOG_PROBS))
  return diffusion.guide_away(EXACT, other(toy.denoiser(WEAK)), w)


@pytest.mark.parametrize("name", ["auto", "classifier"])
def test_outside_the_interval_the_guide_is_skipped(name):
  counter = Counter()

  @jax.jit
  def run(w, low, high):
    weight = guidance.interval(
      guidance.constant(w, schedule=SCHEDULE), low=low, high=high
    )
    return by_ddim(
      scheduled(lambda w: with_guide(name, counter.around, w), weight)
    )

  for w, low, high in ((1.0, -3.0, 3.0), (1.0, -99.0, 99.0), (0.0, -9.0, 9.0)):
    counter.number = 0
    run(w, low, high).block_until_ready()
    jax.effects_barrier()
    inside = np.sum((low <= GRID) & (high > GRID)) if w else 0
    assert counter.number == inside


@pytest.mark.parametrize("two_passes", [False, True])
def test_outside_the_interval_the_null_branch_is_skipped(two_passes):
  seen = []

  def watched(z, logsnr, label):
    jax.debug.callback(lambda label: seen.extend(label), label)
    return EXACT(z, logsnr, label)

  weight = guidance.interval(
    guidance.constant(2.0, schedule=SCHEDULE), low=-3.0, high=3.0
  )
  guide = functools.partial(free, watched, two_passes=two_passes)
  jax.jit(lambda: by_ddim(scheduled(guide, weight)))()
  jax.effects_barrier()
  inside = np.sum((GRID >= -3) & (GRID < 3))
  assert 0 < inside < T
  assert seen.count(NULL) == 5 * inside
  assert len(seen) == 5 * (T + inside)


# Every sampler with every guidance, against float64.


def weighted(make_guidance, make_weight):
  return lambda w: scheduled(make_guidance, make_weight(w))


def in_interval(w):
  return guidance.interval(
    guidance.constant(w, schedule=SCHEDULE), low=-2.0, high=4.0
  )


def rescale(w):
  return free(EXACT, w, combine=functools.partial(guidance.rescaled, phi=0.7))


GUIDED = {
  "classifier-free": lambda w: free(EXACT, w),
  "one pass": lambda w: free(EXACT, w, two_passes=False),
  "classifier": lambda w: by_classifier(EXACT, w),
  "marginal": lambda w: diffusion.guide_away(
    EXACT, guidance.marginal(EXACT, LOG_PROBS), w
  ),
  "auto": lambda w: diffusion.guide_away(EXACT, toy.denoiser(WEAK), w),
  "interval": weighted(functools.partial(free, EXACT), in_interval),
  "linear": weighted(
    functools.partial(free, EXACT),
    functools.partial(guidance.linear, schedule=SCHEDULE),
  ),
  "rescaled": rescale,
  "scaled score": lambda w: guidance.scale_score(EXACT, 1 + w),
}


def reference_of(name, z, logsnr, w):
  """Return what GUIDED[name] predicts, in float64."""
  eps, eps_null = reference_eps(z, np.full(5, logsnr), LABEL)
  if name == "auto":
    eps_null, _ = reference_eps(z, np.full(5, logsnr), LABEL, WEAK)
  if name == "scaled score":
    eps_null = 0
  if name == "interval":
    w = w * (-2 <= logsnr < 4)
  if name == "linear":
    first, last = np.arctan(np.exp(-0.5 * np.array([10, -10])))
    w = w * 2 * (last - np.arctan(np.exp(-0.5 * logsnr))) / (last - first)
  guided = (1 + w) * eps - w * eps_null
  if name == "rescaled":
    axes = (1, 2, 3)
    ratio = eps.std(axis=axes, keepdims=True)
    ratio = ratio / guided.std(axis=axes, keepdims=True)
    guided = (0.7 * ratio + 0.3) * guided
  return guided


def reference_sample(sampler, name, w, noise_scale=1.0, shift=0.0):
  """Run Algorithm 2 in float64 with the same noise."""

  def predicted(z, logsnr):
    alpha, sigma = alpha_sigma(logsnr)
    return (z - sigma * reference_of(name, z, logsnr, w)) / alpha

  z = NOISE[0]
  for k, pair in enumerate(itertools.pairwise(np.float64(GRID)), start=1):
    x = predicted(z, pair[0])
    if sampler == "ddim":
      (alpha, sigma), (alpha_to, sigma_to) = map(alpha_sigma, pair)
      z = alpha_to * x + sigma_to / sigma * (z - alpha * x)
    else:
      on_z, on_x, variance = reverse(*pair, 0.3)
      std = noise_scale * np.sqrt(variance)
      gradient = reference_gradient(z, np.full(5, pair[0]), LABEL)
      z = on_z * z + on_x * x + std * NOISE[k] + shift * variance * gradient
  return predicted(z, np.float64(GRID[-1]))


@functools.cache
def compiled(sampler):
  """Compile every guidance at once: (index in GUIDED, w, noise_scale) -> x."""

  @jax.jit
  def run(index, w, noise_scale):
    def denoise(*arguments):
      guided = [make(w) for make in GUIDED.values()]
      return jax.lax.switch(index, guided, *arguments)

    numbers = {"noise_scale": noise_scale} if sampler == "ancestral" else {}
    return sample(diffusion.SAMPLERS[sampler].sample, denoise, **numbers)

  return run


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_every_sampler_with_every_guidance(sampler, name):
  run = functools.partial(compiled(sampler), list(GUIDED).index(name))
  for w, noise_scale in ((1.5, 1.0), (1.5, 0.5)):
    desired = reference_sample(sampler, name, w, noise_scale)
    close(run(w, noise_scale), desired, atol=1e-4)
  plain = reference_sample(sampler, "classifier-free", 0.0)
  close(run(0.0, 1.0), plain, atol=1e-4)
  assert np.abs(run(1.5, 1.0) - plain).max() > 1e-2


def test_shifted_means_with_classifier_free_guidance():
  x = jax.jit(
    lambda free_w, w: sample(
      diffusion.ancestral_mean_shift,
      free(EXACT, free_w),
      score=guidance.classifier_score(LOG_PROBS, w),
    )
  )
  for free_w, w in ((0.0, 1.5), (0.5, 1.0), (0.5, 0.0)):
    desired = reference_sample("ancestral", "classifier-free", free_w, shift=w)
    close(x(free_w, w), desired, atol=1e-4)


def test_dynamic_threshold_bounds_the_samples():
  threshold = functools.partial(guidance.dynamic_threshold, quantile=0.9)
  wild = free(EXACT, 9.0)
  x = jax.jit(lambda: sample(diffusion.ancestral, wild, threshold))()
  assert np.isfinite(x).all()
  assert np.abs(x).max() <= 1


def test_the_guidance_of_the_documentation():
  page = (ROOT / "docs" / "guidance.md").read_text()
  usage, own = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
  names = {"denoise": EXACT, "earlier": toy.denoiser(WEAK)}
  exec(own, names)
  eps, _ = reference_eps(Z, LOGSNR, LABEL)
  away, _ = reference_eps(Z, LOGSNR, np.full(5, 1))
  close(eps_of(names["away_from"](EXACT, 1, 0.5)), 1.5 * eps - 0.5 * away)
  exec(usage, names | {"log_probs": LOG_PROBS})
