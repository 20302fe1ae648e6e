"""The math of classifier-free guidance (Ho & Salimans, arXiv:2207.12598).

Pure functions of arrays: no network, no config, no state. The paper's symbols:

  z        [B, ...]  noisy images z_lambda = alpha x + sigma eps
  x, eps   [B, ...]  clean images and standard normal noise
  logsnr   [B] or [] lambda = log(alpha^2 / sigma^2)
  u        [B] or [] the schedule's uniform variable; u = 0 is the least noise
  label    [B] int   class c; one more index is the null label
  w        [B] or [] guidance strength: (1 + w) eps(z, c) - w eps(z)
  v                  interpolation of the reverse variance, 0 to 1
  T                  evaluations of a sampler, each at its log-SNR

Everything stays in log-SNR: alpha^2 = sigmoid(lambda), sigma^2 =
sigmoid(-lambda). 1 - alpha^2, 1 - exp(x) and tan near pi/2 are never formed, so
float32 holds at lambda = +-20.

Four function types compose (docs/design.md):

  DenoiseFn  (z, logsnr [B], label [B]) -> Prediction(eps, v); it may have an
             attribute `branches`, see `denoise_branches`
  guidance   DenoiseFn -> DenoiseFn
  predict    (z, logsnr [], label [B]) -> (x, v), guided and thresholded
  sampler    (predict, keys [B], z, label, logsnrs [T], **numbers) -> x

Guidance beyond the paper's own is in cfgd/guidance.py.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Prediction(NamedTuple):
  """What a DenoiseFn returns.

  Attributes:
    eps: [B, ...] predicted noise.
    v: None, or [B, ...] variance interpolation of networks that predict their
      own (ADM's learned sigma, arXiv:2102.09672 eq. 15).
  """

  eps: jax.Array
  v: jax.Array | None = None


def expand(coefficient, z):
  """Give a scalar or [B] coefficient the rank of z [B, ...]."""
  coefficient = jnp.asarray(coefficient)
  assert coefficient.ndim in (0, 1), coefficient.shape
  if coefficient.ndim == 0:
    return coefficient
  assert coefficient.shape[0] == z.shape[0], (coefficient.shape, z.shape)
  return coefficient.reshape(coefficient.shape + (1,) * (z.ndim - 1))


class Schedule(NamedTuple):
  """The noise levels lambda(u) = -2 log tan(a u + b), section 2.

  Attributes:
    logsnr_min: noisiest log-SNR, at u = 1; -20 in the paper.
    logsnr_max: cleanest log-SNR, at u = 0; 20 in the paper.
  """

  logsnr_min: float
  logsnr_max: float

  def logsnr(self, u):
    """Return lambda(u) for u in [0, 1] of any shape."""
    return self._logsnr(u, 1.0 - u)

  def u(self, logsnr):
    """Invert `logsnr`: return u of lambda."""
    a, b = self._constants()
    return (jnp.arctan(jnp.exp(-0.5 * logsnr)) - b) / a

  def grid(self, num_steps):
    """Return lambda_1 < ... < lambda_T [T] at uniformly spaced u, section 4."""
    assert num_steps >= 2, num_steps
    i, last = jnp.arange(num_steps), num_steps - 1
    # 1 - u = i / (T - 1) exactly. Computed as 1.0 - u it would lose the digits
    # that the steep ends of the schedule need.
    return self._logsnr((last - i) / last, i / last)

  def _constants(self):
    b = jnp.arctan(jnp.exp(-0.5 * self.logsnr_max))
    return jnp.arctan(jnp.exp(-0.5 * self.logsnr_min)) - b, b

  def _logsnr(self, u, one_minus_u):
    a, b = self._constants()
    # -log tan(t) = log tan(pi/2 - t), and pi/2 - (a u + b) = a (1 - u) + c with
    # c = arctan(exp(logsnr_min / 2)): use whichever angle is small.
    c = jnp.arctan(jnp.exp(0.5 * self.logsnr_min))
    noisy = u > 0.5
    angle = jnp.where(noisy, a * one_minus_u + c, a * u + b)
    return jnp.where(noisy, 2.0, -2.0) * jnp.log(jnp.tan(angle))


def alpha_sigma(logsnr):
  """Return (alpha, sigma): alpha^2 = sigmoid(lambda) = 1 - sigma^2, eq. 1."""
  # exp(log_sigmoid / 2) rather than sqrt(sigmoid): also right where the square
  # is subnormal, which XLA flushes to zero.
  return (
    jnp.exp(0.5 * jax.nn.log_sigmoid(logsnr)),
    jnp.exp(0.5 * jax.nn.log_sigmoid(-logsnr)),
  )


def diffuse(x, eps, logsnr):
  """Return z_lambda = alpha x + sigma eps, a draw from q(z | x), eq. 1."""
  alpha, sigma = alpha_sigma(logsnr)
  return expand(alpha, x) * x + expand(sigma, x) * eps


def x_from_eps(z, eps, logsnr):
  """Return x = (z - sigma eps) / alpha, Algorithm 2, line 4."""
  alpha, sigma = alpha_sigma(logsnr)
  return (z - expand(sigma, z) * eps) / expand(alpha, z)


def even_logsnrs(num, *, logsnr_low, logsnr_high):
  """Return `num` log-SNRs, evenly spaced."""
  return jnp.asarray(np.linspace(logsnr_low, logsnr_high, num))


def edm_logsnrs(num, *, logsnr_low, logsnr_high, rho):
  """Return the `num` log-SNRs of EDM, arXiv:2206.00364 eq. 5.

  Its sigma is ours over alpha, exp(-lambda / 2); the rho-th root of it is
  evenly spaced.
  """
  # In float64: roots lie close together, and their logarithms count rho times.
  ends = np.array([logsnr_low, logsnr_high])
  roots = np.linspace(*np.exp(-0.5 * ends / rho), num)
  return jnp.asarray(np.clip(-2.0 * rho * np.log(roots), *ends))


# Randomness is named: an image by (seed, index), its noise by the step, too.


def image_keys(seed, index):
  """Return the keys [B] of images `index` [B]: fold_in(root(seed), i)."""
  root = jax.random.key(seed)
  return jax.vmap(functools.partial(jax.random.fold_in, root))(index)


def fold_in(keys, data):
  """Fold one integer, or one per key, into keys [B]."""
  axis = 0 if jnp.ndim(data) else None
  return jax.vmap(jax.random.fold_in, (0, axis))(keys, data)


def normal(keys, shape):
  """Draw [B, *shape] standard normal numbers, each row from its own key."""
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


# Training: Algorithm 1.


def drop_label(keys, label, *, p_uncond, null_label):
  """Return label [B], each replaced by null_label with probability p_uncond."""
  drop = jax.vmap(lambda key: jax.random.bernoulli(key, p_uncond))(keys)
  return jnp.where(drop, null_label, label)


def loss(denoise, keys, x, label, *, p_uncond, null_label, schedule):
  """Return the denoising loss of each example, Algorithm 1 and eq. 5.

  Args:
    denoise: DenoiseFn under training.
    keys: [B] random keys, one per example.
    x: [B, ...] clean data in [-1, 1].
    label: [B] int class.
    p_uncond: probability of training an example without its label.
    null_label: label of the unconditional model.
    schedule: Schedule.

  Returns:
    [B] squared error of eps, a mean over the dimensions of x: the paper's
    squared norm over a constant, to which Adam is invariant.
  """
  key_u, key_eps, key_drop = (fold_in(keys, i) for i in range(3))
  # Line 3. Before the network, so that no part of it sees a dropped label.
  label = drop_label(key_drop, label, p_uncond=p_uncond, null_label=null_label)
  logsnr = schedule.logsnr(jax.vmap(jax.random.uniform)(key_u))  # line 4
  eps = normal(key_eps, x.shape[1:])  # line 5
  z = diffuse(x, eps, logsnr)  # line 6
  error = denoise(z, logsnr, label).eps - eps  # line 7
  return jnp.mean(jnp.square(error), axis=tuple(range(1, x.ndim)))


# Guidance: DenoiseFn from DenoiseFn.


def unconditional(denoise, *, null_label):
  """Return the unconditional model: the DenoiseFn at the null label."""

  def denoise_null(z, logsnr, label):
    return denoise(z, logsnr, jnp.full_like(label, null_label))

  return denoise_null


def denoise_branches(denoise, z, logsnr, labels):
  """Predict at several labels for each z, in one call.

  A DenoiseFn that can do this for less than separate calls cost, such as a
  network with late conditioning, does it in its attribute `branches`, a
  function of (z, logsnr, labels). Others are given copies of z.

  Args:
    denoise: DenoiseFn.
    z: [B, ...].
    logsnr: [B].
    labels: [N, B].

  Returns:
    Prediction of [N, B, ...].
  """
  branches = getattr(denoise, "branches", None)
  if branches is not None:
    return branches(z, logsnr, labels)
  count = labels.shape[0]
  stacked = denoise(
    jnp.concatenate([z] * count),
    jnp.concatenate([logsnr] * count),
    labels.reshape(-1),
  )
  return jax.tree.map(lambda array: array.reshape(count, *z.shape), stacked)


def extrapolate(eps, eps_other, w):
  """Return (1 + w) eps - w eps_other, eq. 6; w is a scalar or [B]."""
  w = expand(w, eps)
  return (1.0 + w) * eps - w * eps_other


def guide_away(denoise, other, w, *, combine=extrapolate):
  """Guide by (1 + w) eps - w eps_other, evaluating one model after the other.

  With a weaker model as `other` this is autoguidance (Karras et al.,
  arXiv:2406.02507, whose weight is 1 + w).

  Args:
    denoise: DenoiseFn.
    other: DenoiseFn to guide away from.
    w: guidance strength, scalar or [B], may be traced; `other` is not evaluated
      where w is 0 for the whole batch.
    combine: (eps, eps_other, w) -> guided eps: eq. 6, or another rule such as
      `guidance.rescaled`. Where w is 0 it is given eps twice.

  Returns:
    The guided DenoiseFn, with the `v` of `denoise`.
  """
  w = jnp.asarray(w)

  def guided(z, logsnr, label):
    prediction = denoise(z, logsnr, label)
    eps_other = jax.lax.cond(
      jnp.any(w != 0),
      lambda: other(z, logsnr, label).eps,
      lambda: prediction.eps,
    )
    return prediction._replace(eps=combine(prediction.eps, eps_other, w))

  return guided


def classifier_free_guidance(
  denoise, w, *, null_label, two_passes, combine=extrapolate
):
  """Guide by (1 + w) eps(z, c) - w eps(z), eq. 6.

  Args:
    denoise: DenoiseFn trained with label dropout.
    w: guidance strength of the paper, scalar or [B], may be traced. w = 0 is
      the conditional model and makes no null pass, w = -1 the unconditional
      model. The other convention is s = 1 + w.
    null_label: label of the unconditional model.
    two_passes: evaluate eps(z, c) and eps(z) one after the other instead of in
      one forward pass of 2B: the same numbers, at another speed. Not where
      `denoise` has a way of its own, see `denoise_branches`.
    combine: see `guide_away`.

  Returns:
    The guided DenoiseFn, with the `v` of the conditional model.
  """
  if two_passes and not hasattr(denoise, "branches"):
    null = unconditional(denoise, null_label=null_label)
    return guide_away(denoise, null, w, combine=combine)
  w = jnp.asarray(w)

  def both(z, logsnr, label):
    labels = jnp.stack([label, jnp.full_like(label, null_label)])
    predictions = denoise_branches(denoise, z, logsnr, labels)
    conditional = jax.tree.map(lambda array: array[0], predictions)
    return conditional, predictions.eps[1]

  def conditional_alone(z, logsnr, label):
    prediction = denoise(z, logsnr, label)
    return prediction, prediction.eps

  def guided(z, logsnr, label):
    prediction, eps_null = jax.lax.cond(
      *(jnp.any(w != 0), both, conditional_alone), z, logsnr, label
    )
    return prediction._replace(eps=combine(prediction.eps, eps_null, w))

  return guided


# Sampling: Algorithm 2, and samplers of fewer steps.


def clip(x):
  """Clip predicted x to the data range [-1, 1]."""
  return jnp.clip(x, -1.0, 1.0)


def no_threshold(x):
  """Return predicted x unchanged."""
  return x


def predictor(denoise, *, threshold, v):
  """Return a sampler's `predict`: Algorithm 2, lines 3 and 4.

  Args:
    denoise: DenoiseFn, guided or not.
    threshold: x -> x, applied to every predicted x.
    v: variance interpolation for networks that predict none.

  Returns:
    (z [B, ...], logsnr [], label [B]) -> (x [B, ...], v): the predicted clean
    images, and the network's v [B, ...] or the constant.
  """

  def predict(z, logsnr, label):
    eps, own_v = denoise(z, jnp.full(z.shape[:1], logsnr, z.dtype), label)
    x = threshold(x_from_eps(z, eps, logsnr))
    return x, v if own_v is None else own_v

  return predict


def reverse(z, x, v, *, logsnr, logsnr_next):
  """Return (mean, variance) of p(z_lambda' | z_lambda), lambda < lambda'.

  The posterior q(z_lambda' | z_lambda, x), eq. 3, whose variance is
  interpolated with that of q(z_lambda | z_lambda'), eq. 4.

  Args:
    z: [B, ...] at lambda = logsnr.
    x: [B, ...] predicted from z.
    v: variance interpolation, scalar or [B, ...]; 0 is the posterior's.
    logsnr: scalar lambda.
    logsnr_next: scalar lambda'.

  Returns:
    [B, ...], and an array of v's shape.
  """
  log_alpha = 0.5 * jax.nn.log_sigmoid(logsnr)
  log_alpha_next = 0.5 * jax.nn.log_sigmoid(logsnr_next)
  one_minus_ratio = -jnp.expm1(logsnr - logsnr_next)
  ratio = jnp.exp(logsnr - logsnr_next + log_alpha_next - log_alpha)
  mean = ratio * z + one_minus_ratio * jnp.exp(log_alpha_next) * x
  # The two variances differ in sigma'^2 and sigma^2 alone.
  variance = one_minus_ratio * jnp.exp(
    (1.0 - v) * jax.nn.log_sigmoid(-logsnr_next)
    + v * jax.nn.log_sigmoid(-logsnr)
  )
  return mean, variance


def renoise(z, noise, *, logsnr, logsnr_noisy):
  """Return z_lambda, a draw from q(z_lambda | z_lambda'), section 2.

  Args:
    z: [B, ...] at lambda' = logsnr.
    noise: [B, ...] standard normal numbers.
    logsnr: scalar lambda'.
    logsnr_noisy: scalar lambda <= lambda'; where they are equal, z is returned.
  """
  log_alpha = 0.5 * jax.nn.log_sigmoid(logsnr)
  log_alpha_noisy = 0.5 * jax.nn.log_sigmoid(logsnr_noisy)
  _, sigma_noisy = alpha_sigma(logsnr_noisy)
  std = jnp.sqrt(-jnp.expm1(logsnr_noisy - logsnr)) * sigma_noisy
  return jnp.exp(log_alpha_noisy - log_alpha) * z + std * noise


def flow(z, x, *, logsnr, logsnr_next):
  """Return z_lambda' on the path of DDIM, arXiv:2010.02502 eq. 12.

  The noise direction belongs to the x that is given. Arguments as of `reverse`.
  """
  alpha, sigma = alpha_sigma(logsnr)
  alpha_next, sigma_next = alpha_sigma(logsnr_next)
  return alpha_next * x + sigma_next * (z - alpha * x) / sigma


def transitions(logsnrs):
  """Return the scan inputs (t, lambda_t, lambda_t+1) [T] of a sampler.

  lambda_T leads nowhere: its next log-SNR is itself, and a sampler returns the
  x predicted there. So the scan holds all evaluations, and the compiled program
  one network.
  """
  t = jnp.arange(1, logsnrs.shape[0] + 1)
  return t, logsnrs, jnp.append(logsnrs[1:], logsnrs[-1])


def ancestral(predict, keys, z, label, logsnrs, *, noise_scale=1.0):
  """Sample from the reverse process: Algorithm 2.

  Args:
    predict: of `predictor`.
    keys: [B] random keys, one per image; fold t drives transition t.
    z: [B, ...] standard normal noise, at lambda_1.
    label: [B] int class.
    logsnrs: [T] increasing log-SNR lambda_1 .. lambda_T, may be traced.
    noise_scale: factor of the noise's standard deviation, may be traced; below
      1 it is the low temperature that the introduction calls ineffective.

  Returns:
    [B, ...] samples: x predicted at lambda_T.
  """

  def step(carry, inputs):
    (z, _), (t, logsnr, logsnr_next) = carry, inputs
    x, v = predict(z, logsnr, label)  # lines 3 and 4
    mean, variance = reverse(z, x, v, logsnr=logsnr, logsnr_next=logsnr_next)
    noise = noise_scale * normal(fold_in(keys, t), z.shape[1:])
    return (mean + jnp.sqrt(variance) * noise, x), None  # line 5

  (_, x), _ = jax.lax.scan(step, (z, z), transitions(logsnrs))
  return x


def ancestral_mean_shift(predict, keys, z, label, logsnrs, *, score):
  """Sample with the reverse mean shifted by Sigma w grad_z log p(c | z).

  The first form of classifier guidance (Dhariwal & Nichol, arXiv:2105.05233,
  Algorithm 1). Sigma is the step's variance, per pixel where the network
  predicts v. The gradient is taken at z, as in ADM's code, not at the mean; the
  shift does not pass the threshold. Small steps make it
  `guidance.classifier_guidance`.

  Args:
    predict: see `ancestral` for this and the next four; without the guidance by
      the classifier.
    keys: see `ancestral`.
    z: see `ancestral`.
    label: see `ancestral`.
    logsnrs: see `ancestral`.
    score: (z, logsnr [B], label) -> [B, ...] w grad_z log p(c | z).

  Returns:
    [B, ...] samples.
  """

  def step(carry, inputs):
    (z, _), (t, logsnr, logsnr_next) = carry, inputs
    x, v = predict(z, logsnr, label)
    mean, variance = reverse(z, x, v, logsnr=logsnr, logsnr_next=logsnr_next)
    shift = variance * score(z, jnp.full(z.shape[:1], logsnr, z.dtype), label)
    noise = jnp.sqrt(variance) * normal(fold_in(keys, t), z.shape[1:])
    return (mean + shift + noise, x), None

  (_, x), _ = jax.lax.scan(step, (z, z), transitions(logsnrs))
  return x


def ddim(predict, keys, z, label, logsnrs):
  """Sample along the deterministic path of DDIM, see `flow`.

  Arguments and result as of `ancestral`; keys are not used.
  """
  del keys

  def step(carry, inputs):
    (z, _), (_, logsnr, logsnr_next) = carry, inputs
    x, _ = predict(z, logsnr, label)
    return (flow(z, x, logsnr=logsnr, logsnr_next=logsnr_next), x), None

  (_, x), _ = jax.lax.scan(step, (z, z), transitions(logsnrs))
  return x


# A transition that is longer than this many times the one before it is of first
# order. The last of the paper's grid is 5 to 11 times as long, too far for a
# line through two predictions.
_MAX_STRETCH = 2.0


def _two_step(advance, predict, z, label, logsnrs):
  """Sample by transitions at an x extrapolated from the last two predictions.

  The second-order correction of DPM-Solver++(2M), arXiv:2211.01095 Algorithm 2.

  Args:
    advance: (z, x, t, lambda_t, lambda_t+1) -> z, a transition at given x.
    predict: see `ancestral` for this and the next three.
    z: see `ancestral`.
    label: see `ancestral`.
    logsnrs: see `ancestral`.
  """

  def step(carry, inputs):
    (z, x_before, h_before), (t, logsnr, logsnr_next) = carry, inputs
    x, _ = predict(z, logsnr, label)
    h = logsnr_next - logsnr
    stretch = h / h_before  # 0 at first, where there is no x_before
    slope = jnp.where(stretch <= _MAX_STRETCH, 0.5 * stretch, 0.0)
    z = advance(z, x + slope * (x - x_before), t, logsnr, logsnr_next)
    return (z, x, h), None

  start = z, z, jnp.full((), jnp.inf, logsnrs.dtype)
  (_, x, _), _ = jax.lax.scan(step, start, transitions(logsnrs))
  return x


def dpmpp_2m(predict, keys, z, label, logsnrs):
  """Sample by DPM-Solver++(2M), arXiv:2211.01095: DDIM of second order.

  Arguments and result as of `ancestral`; keys are not used.
  """
  del keys

  def advance(z, x, t, logsnr, logsnr_next):
    del t
    return flow(z, x, logsnr=logsnr, logsnr_next=logsnr_next)

  return _two_step(advance, predict, z, label, logsnrs)


def sde_dpmpp_2m(predict, keys, z, label, logsnrs, *, noise_scale=1.0):
  """Sample by SDE-DPM-Solver++(2M), arXiv:2211.01095 appendix.

  Algorithm 2 at v = 0 with an extrapolated x. Arguments and result as of
  `ancestral`.
  """

  def advance(z, x, t, logsnr, logsnr_next):
    ends = {"logsnr": logsnr, "logsnr_next": logsnr_next}
    mean, variance = reverse(z, x, 0.0, **ends)
    noise = noise_scale * normal(fold_in(keys, t), z.shape[1:])
    return mean + jnp.sqrt(variance) * noise

  return _two_step(advance, predict, z, label, logsnrs)


# EDM's limit, sqrt(2) - 1: churn at most doubles the variance.
_MAX_CHURN = 0.41421356
# A correction multiplies the difference of two eps by half of alpha times the
# length of the transition in sigma / alpha. EDM starts at 80; the paper's grid
# starts at 22,000, where this would leave nothing of x.
_MAX_CORRECTION = 16.0


def churned(logsnrs, *, churn, churn_low, churn_high):
  """Return the log-SNRs [T] at which `heun` evaluates, see there."""
  grown = jnp.minimum(churn / (logsnrs.shape[0] // 2 + 1), _MAX_CHURN)
  starts = jnp.arange(logsnrs.shape[0]) % 2 == 0
  within = starts & (churn_low <= logsnrs) & (logsnrs <= churn_high)
  noisier = logsnrs - 2.0 * jnp.log1p(jnp.where(within, grown, 0.0))
  return jnp.maximum(noisier, logsnrs[0])  # no noisier than the start


def heun(
  predict,
  keys,
  z,
  label,
  logsnrs,
  *,
  churn=0.0,
  churn_low=-jnp.inf,
  churn_high=jnp.inf,
  noise_scale=1.0,
):
  """Sample by EDM's method of second order, arXiv:2206.00364 Algorithm 2.

  EDM's sigma is s = sigma / alpha here, and its x is z / alpha, whose slope
  over s is eps. A transition is Euler's step, which is `flow`, and its
  correction by the slope where it leads: odd evaluations start a transition,
  even ones correct it. If T is even, the last transition is not corrected, nor
  is one that is too long at high noise.

  Args:
    predict: see `ancestral` for this and the next three.
    keys: see `ancestral`; not used without churn.
    z: see `ancestral`.
    label: see `ancestral`.
    logsnrs: [T] log-SNR of each evaluation, lambda_1 <= .. <= lambda_T, may be
      traced: the 2nd and 3rd are equal, the 4th and 5th, and so on.
    churn: EDM's S_churn: before each transition from one of n levels, noise
      makes sigma / alpha larger by the factor 1 + churn / n, at most sqrt(2).
    churn_low: noisiest log-SNR that gets it, -2 log S_max.
    churn_high: cleanest log-SNR that gets it, -2 log S_min.
    noise_scale: factor of its standard deviation, EDM's S_noise.

  Returns:
    [B, ...] samples: x of the last evaluation.
  """
  ats = churned(
    logsnrs, churn=churn, churn_low=churn_low, churn_high=churn_high
  )

  def step(carry, inputs):
    (z, eps_start, s_start, _), (at, (t, logsnr, logsnr_next)) = carry, inputs
    noise = noise_scale * normal(fold_in(keys, t), z.shape[1:])
    z = renoise(z, noise, logsnr=logsnr, logsnr_noisy=at)
    x, _ = predict(z, at, label)
    alpha, sigma = alpha_sigma(at)
    eps, s = (z - alpha * x) / sigma, jnp.exp(-0.5 * at)
    euler = flow(z, x, logsnr=at, logsnr_next=logsnr_next)
    weight = alpha * (s_start - s)
    weight = jnp.where(weight <= _MAX_CORRECTION, weight, 0.0)
    corrected = z - 0.5 * weight * (eps - eps_start)
    return (jnp.where(t % 2 == 1, euler, corrected), eps, s, x), None

  start = z, z, jnp.zeros((), logsnrs.dtype), z
  (*_, x), _ = jax.lax.scan(step, start, (ats, transitions(logsnrs)))
  return x


class Sampler(NamedTuple):
  """A row of SAMPLERS.

  Attributes:
    sample: (predict, keys, z, label, logsnrs, **numbers) -> x.
    numbers: its keyword arguments that are settings of `sampling`.
    uses_v: whether it reads the v of `predict`; if not, `sampling.v` does not
      name folders of samples.
    without_score: of a sampler that applies a classifier's guidance itself,
      being given `score` and a `predict` without that guidance: the sampler
      with the same samples where no classifier guides; "" for all others.
    evaluations: of `predict` per transition: the first at its start, all others
      at its end.
    moved: None, or (logsnrs [T], **numbers) -> log-SNRs [T], of a sampler that
      evaluates elsewhere than at those it is given.
    moved_by: the numbers of `moved`.
  """

  sample: Callable
  numbers: tuple[str, ...] = ()
  uses_v: bool = True
  without_score: str = ""
  evaluations: int = 1
  moved: Callable | None = None
  moved_by: tuple[str, ...] = ()

  def levels(self, num_evaluations):
    """Return the index [T] into the grid's levels of each evaluation."""
    k = np.arange(num_evaluations)
    return -(-k // self.evaluations)


SAMPLERS = {
  "ancestral": Sampler(ancestral, numbers=("noise_scale",)),
  "ancestral_mean_shift": Sampler(
    ancestral_mean_shift, without_score="ancestral"
  ),
  "ddim": Sampler(ddim, uses_v=False),
  "dpmpp_2m": Sampler(dpmpp_2m, uses_v=False),
  "sde_dpmpp_2m": Sampler(sde_dpmpp_2m, numbers=("noise_scale",), uses_v=False),
  "heun": Sampler(
    heun,
    numbers=("churn", "churn_low", "churn_high", "noise_scale"),
    uses_v=False,
    evaluations=2,
    moved=churned,
    moved_by=("churn", "churn_low", "churn_high"),
  ),
}
