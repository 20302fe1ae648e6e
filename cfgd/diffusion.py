"""The math of classifier-free guidance (Ho & Salimans, arXiv:2207.12598).

Pure functions of arrays: no network, no config, no state. The paper's symbols:

  z        [B, ...]  noisy images z_lambda = alpha x + sigma eps
  x, eps   [B, ...]  clean images and standard normal noise
  logsnr   [B] or [] lambda = log(alpha^2 / sigma^2), from logsnr_min to _max
  u        [B] or [] uniform variable of the schedule; u = 0 is logsnr_max
  label    [B] int   class c; one more index is the null label
  w        [B] or [] guidance strength: (1 + w) eps(z, c) - w eps(z)
  v                  interpolation of the reverse variance, 0 to 1
  T                  number of network evaluations of a sampler

Everything stays in log-SNR: alpha^2 = sigmoid(lambda), sigma^2 =
sigmoid(-lambda). 1 - alpha^2, 1 - exp(x) and tan near pi/2 are never formed, so
that float32 holds at lambda = +-20.

Four shapes of function make a sampler (see docs/design.md), two more a
classifier's guidance:

  DenoiseFn  (z, logsnr [B], label [B]) -> Prediction(eps, v)
  guidance   DenoiseFn -> DenoiseFn
  predict    (z, logsnr [], label [B]) -> (x, v), guided and thresholded
  step       (keys [B], z, x, v, logsnr_from [], logsnr_to []) -> z
  log_prob   (z, logsnr [B], label [B]) -> [B] log p(c | z_lambda)
  log_probs  (z, logsnr [B]) -> [B, K], of every class

What later papers made of guidance wraps these from outside: cfgd/guidance.py.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Prediction(NamedTuple):
  """What a DenoiseFn returns.

  Attributes:
    eps: [B, ...] predicted noise.
    v: None, or [B, ...] variance interpolation, of networks that predict their
      own (ADM's learned sigma, arXiv:2102.09672 eq. 15).
  """

  eps: jax.Array
  v: jax.Array | None = None


def _expand(coefficient, z):
  """Give a scalar or [B] coefficient the rank of z."""
  coefficient = jnp.asarray(coefficient)
  assert coefficient.ndim in (0, 1), coefficient.shape
  if coefficient.ndim == 0:
    return coefficient
  assert coefficient.shape[0] == z.shape[0], (coefficient.shape, z.shape)
  return coefficient.reshape(coefficient.shape + (1,) * (z.ndim - 1))


# The schedule: section 2 of the paper.


def _schedule_constants(logsnr_min, logsnr_max):
  """Return (a, b) of lambda(u) = -2 log tan(a u + b)."""
  b = jnp.arctan(jnp.exp(-0.5 * logsnr_max))
  a = jnp.arctan(jnp.exp(-0.5 * logsnr_min)) - b
  return a, b


def _logsnr(u, one_minus_u, logsnr_min, logsnr_max):
  a, b = _schedule_constants(logsnr_min, logsnr_max)
  # -log tan(t) = log tan(pi/2 - t), and pi/2 - (a u + b) = a (1 - u) + c with
  # c = arctan(exp(logsnr_min / 2)): whichever angle is small keeps its digits.
  c = jnp.arctan(jnp.exp(0.5 * logsnr_min))
  noisy = u > 0.5
  angle = jnp.where(noisy, a * one_minus_u + c, a * u + b)
  return jnp.where(noisy, 2.0, -2.0) * jnp.log(jnp.tan(angle))


def logsnr_schedule(u, *, logsnr_min, logsnr_max):
  """Map u in [0, 1] to lambda(u) = -2 log tan(a u + b), section 2.

  Args:
    u: any shape; 0 gives logsnr_max, 1 gives logsnr_min.
    logsnr_min: the noisiest log-SNR, -20 in the paper.
    logsnr_max: the cleanest log-SNR, 20 in the paper.

  Returns:
    Log-SNR, of u's shape.
  """
  return _logsnr(u, 1.0 - u, logsnr_min, logsnr_max)


def u_of_logsnr(logsnr, *, logsnr_min, logsnr_max):
  """Invert `logsnr_schedule`."""
  a, b = _schedule_constants(logsnr_min, logsnr_max)
  return (jnp.arctan(jnp.exp(-0.5 * logsnr)) - b) / a


def log_density_of_logsnr(logsnr, *, logsnr_min, logsnr_max):
  """Return log p(lambda) for lambda = lambda(u), u uniform, section 2.

  p(lambda) = 1 / (4 a cosh(lambda / 2)), a truncated hyperbolic secant.
  """
  a, _ = _schedule_constants(logsnr_min, logsnr_max)
  half = jnp.abs(0.5 * logsnr)
  return -jnp.log(2.0 * a) - half - jnp.log1p(jnp.exp(-2.0 * half))


def density_of_logsnr(logsnr, *, logsnr_min, logsnr_max):
  """Return p(lambda), see `log_density_of_logsnr`."""
  a, _ = _schedule_constants(logsnr_min, logsnr_max)
  return 1.0 / (4.0 * a * jnp.cosh(0.5 * logsnr))


def logsnr_grid(num_steps, *, logsnr_min, logsnr_max):
  """Return lambda_1 < ... < lambda_T at T uniformly spaced u, section 4.

  Args:
    num_steps: T >= 2.
    logsnr_min: lambda_1.
    logsnr_max: lambda_T.

  Returns:
    [T] increasing log-SNR, from noise to data.
  """
  assert num_steps >= 2, num_steps
  i = jnp.arange(num_steps)
  last = num_steps - 1
  # 1 - u is i / (T - 1) exactly; subtracting it from 1 would cost the digits
  # that the steep ends of the schedule need.
  return _logsnr((last - i) / last, i / last, logsnr_min, logsnr_max)


# Marginals, transitions, posteriors: eq. 1 to 4.


def alpha_sigma(logsnr):
  """Return (alpha, sigma): alpha^2 = sigmoid(lambda) = 1 - sigma^2, eq. 1."""
  # exp(log_sigmoid / 2) and not sqrt(sigmoid): also right where the square is
  # subnormal, which XLA flushes to zero.
  return (
    jnp.exp(0.5 * jax.nn.log_sigmoid(logsnr)),
    jnp.exp(0.5 * jax.nn.log_sigmoid(-logsnr)),
  )


def diffuse(x, eps, logsnr):
  """Return z_lambda = alpha x + sigma eps, a draw of q(z_lambda | x), eq. 1."""
  alpha, sigma = alpha_sigma(logsnr)
  return _expand(alpha, x) * x + _expand(sigma, x) * eps


def _log_one_minus_ratio(logsnr_from, logsnr_to):
  """Return log(1 - exp(lambda - lambda')) for lambda < lambda'."""
  return jnp.log(-jnp.expm1(logsnr_from - logsnr_to))


def transition(*, logsnr_from, logsnr_to):
  """Return q(z_lambda | z_lambda') for lambda < lambda', eq. 2.

  Args:
    logsnr_from: lambda, the noisier of the two (the variable).
    logsnr_to: lambda', the cleaner (the condition).

  Returns:
    (coefficient, log variance): mean = coefficient * z_lambda', variance
    sigma^2_{lambda | lambda'} = (1 - exp(lambda - lambda')) sigma_lambda^2.
  """
  coefficient = jnp.exp(
    0.5 * (jax.nn.log_sigmoid(logsnr_from) - jax.nn.log_sigmoid(logsnr_to))
  )
  log_variance = _log_one_minus_ratio(
    logsnr_from, logsnr_to
  ) + jax.nn.log_sigmoid(-logsnr_from)
  return coefficient, log_variance


def posterior(*, logsnr_from, logsnr_to):
  """Return q(z_lambda' | z_lambda, x) for lambda < lambda', eq. 3.

  Args:
    logsnr_from: lambda, where z is.
    logsnr_to: lambda', where the step leads.

  Returns:
    (coefficient of z, coefficient of x, log variance):
    mean = exp(lambda - lambda') (alpha' / alpha) z + (1 - exp(lambda -
    lambda')) alpha' x, variance (1 - exp(lambda - lambda')) sigma'^2.
  """
  log_alpha_from = 0.5 * jax.nn.log_sigmoid(logsnr_from)
  log_alpha_to = 0.5 * jax.nn.log_sigmoid(logsnr_to)
  coefficient_z = jnp.exp(
    (logsnr_from - logsnr_to) + (log_alpha_to - log_alpha_from)
  )
  one_minus_ratio = -jnp.expm1(logsnr_from - logsnr_to)
  coefficient_x = one_minus_ratio * jnp.exp(log_alpha_to)
  log_variance = jnp.log(one_minus_ratio) + jax.nn.log_sigmoid(-logsnr_to)
  return coefficient_z, coefficient_x, log_variance


def reverse_log_variance(*, logsnr_from, logsnr_to, v):
  """Return the log of (posterior var)^(1 - v) (transition var)^v, eq. 4."""
  # The two differ only in sigma'^2 against sigma^2.
  return (
    _log_one_minus_ratio(logsnr_from, logsnr_to)
    + (1.0 - v) * jax.nn.log_sigmoid(-logsnr_to)
    + v * jax.nn.log_sigmoid(-logsnr_from)
  )


# Conversions between the quantities that a network may predict.


def x_from_eps(z, eps, logsnr):
  """Return x = (z - sigma eps) / alpha."""
  alpha, sigma = alpha_sigma(logsnr)
  return (z - _expand(sigma, z) * eps) / _expand(alpha, z)


def eps_from_x(z, x, logsnr):
  """Return eps = (z - alpha x) / sigma."""
  alpha, sigma = alpha_sigma(logsnr)
  return (z - _expand(alpha, z) * x) / _expand(sigma, z)


def score_from_eps(eps, logsnr):
  """Return the score, grad_z log p(z_lambda) = -eps / sigma, section 2."""
  _, sigma = alpha_sigma(logsnr)
  return -eps / _expand(sigma, eps)


def eps_from_score(score, logsnr):
  """Return eps = -sigma grad_z log p(z_lambda)."""
  _, sigma = alpha_sigma(logsnr)
  return -_expand(sigma, score) * score


# Training: Algorithm 1.


def fold_in(keys, data):
  """Fold one integer, or one per key, into keys [B]."""
  axis = 0 if jnp.ndim(data) else None
  return jax.vmap(jax.random.fold_in, (0, axis))(keys, data)


def normal(keys, shape):
  """Draw [B, *shape] standard normal numbers, each row from its own key."""
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def drop_label(keys, label, *, p_uncond, null_label):
  """Replace each label by the null label with probability p_uncond.

  Algorithm 1, line 3. Once per example and before the network, so that no part
  of it can still see a dropped label.

  Args:
    keys: [B] random keys.
    label: [B] int class.
    p_uncond: probability of dropping; may be traced.
    null_label: int that stands for "no class".

  Returns:
    [B] labels.
  """
  drop = jax.vmap(lambda key: jax.random.bernoulli(key, p_uncond))(keys)
  return jnp.where(drop, null_label, label)


def loss(
  denoise, keys, x, label, *, p_uncond, null_label, logsnr_min, logsnr_max
):
  """Return the denoising loss of each example, Algorithm 1 and eq. 5.

  Args:
    denoise: DenoiseFn under training.
    keys: [B] random keys, one per example.
    x: [B, ...] clean data in [-1, 1].
    label: [B] int class.
    p_uncond: probability of training an example without its label.
    null_label: the label of the unconditional model.
    logsnr_min: lower end of the schedule.
    logsnr_max: upper end of the schedule.

  Returns:
    [B] squared error of eps as a mean over the dimensions of x: the paper's
    squared norm divided by a constant, which Adam does not feel.
  """
  key_u, key_eps, key_drop = (fold_in(keys, i) for i in range(3))
  label = drop_label(key_drop, label, p_uncond=p_uncond, null_label=null_label)
  u = jax.vmap(jax.random.uniform)(key_u)
  logsnr = logsnr_schedule(u, logsnr_min=logsnr_min, logsnr_max=logsnr_max)
  eps = normal(key_eps, x.shape[1:])
  z = diffuse(x, eps, logsnr)
  error = denoise(z, logsnr, label).eps - eps
  return jnp.mean(jnp.square(error), axis=tuple(range(1, x.ndim)))


# Networks and guidance: DenoiseFn from a network, DenoiseFn from DenoiseFn.


def denoiser(network, *, logsnr_min, logsnr_max):
  """Make a DenoiseFn of an eps-predicting network.

  Args:
    network: (z, time [B], label [B]) -> eps. Its time is 1000 u(lambda), which
      lines up with the integer timesteps 0 (clean) to 999 of DDPM and ADM.
    logsnr_min: lower end of the schedule.
    logsnr_max: upper end of the schedule.

  Returns:
    A DenoiseFn.
  """

  def denoise(z, logsnr, label):
    u = u_of_logsnr(logsnr, logsnr_min=logsnr_min, logsnr_max=logsnr_max)
    return Prediction(network(z, 1000.0 * u, label))

  return denoise


def unconditional(denoise, *, null_label):
  """Make the unconditional model of a DenoiseFn: the null label for all."""

  def denoise_null(z, logsnr, label):
    return denoise(z, logsnr, jnp.full_like(label, null_label))

  return denoise_null


def extrapolate(eps, eps_other, w):
  """Return (1 + w) eps - w eps_other, eq. 6; w is a scalar or [B]."""
  w = _expand(w, eps)
  return (1.0 + w) * eps - w * eps_other


def guide_away(denoise, other, w, *, combine=extrapolate):
  """Guide by (1 + w) eps - w eps_other, one model after the other.

  Args:
    denoise: DenoiseFn.
    other: DenoiseFn to guide away from.
    w: guidance strength, scalar or [B], may be traced; at w = 0 `other` is not
      evaluated.
    combine: (eps, eps_other, w) -> guided eps: eq. 6, or another rule such as
      `guidance.rescaled`. At w = 0 it is given eps twice.

  Returns:
    The guided DenoiseFn. The `v` of `denoise` is passed on.
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
    w: guidance strength of the paper, scalar or [B], may be traced; w = 0 is
      the conditional model and makes no null pass, w = -1 the unconditional
      one. The other convention is s = 1 + w.
    null_label: the label of the unconditional model.
    two_passes: evaluate eps(z, c) and eps(z) one after the other and not as
      one forward of 2B: the same numbers, whichever the platform runs faster.
    combine: see `guide_away`.

  Returns:
    The guided DenoiseFn. The conditional branch's `v` is passed on.
  """
  if two_passes:
    null = unconditional(denoise, null_label=null_label)
    return guide_away(denoise, null, w, combine=combine)
  w = jnp.asarray(w)

  def both(z, logsnr, label):
    predictions = denoise(
      jnp.concatenate([z, z]),
      jnp.concatenate([logsnr, logsnr]),
      jnp.concatenate([label, jnp.full_like(label, null_label)]),
    )
    size = z.shape[0]
    conditional = jax.tree.map(lambda array: array[:size], predictions)
    return conditional, predictions.eps[size:]

  def conditional_alone(z, logsnr, label):
    prediction = denoise(z, logsnr, label)
    return prediction, prediction.eps

  def guided(z, logsnr, label):
    prediction, eps_null = jax.lax.cond(
      *(jnp.any(w != 0), both, conditional_alone), z, logsnr, label
    )
    return prediction._replace(eps=combine(prediction.eps, eps_null, w))

  return guided


def log_prob_of_label(log_probs):
  """Make the log_prob of a classifier.

  The null label means any class and has probability 1: its gradient is zero,
  so that classifier guidance and classifier-free guidance wrap each other in
  either order.

  Args:
    log_probs: (z, logsnr) -> [B, K] log p(c | z_lambda); the null label is K.

  Returns:
    (z, logsnr, label) -> [B]; NaN for a label above K.
  """

  def log_prob(z, logsnr, label):
    every = jnp.pad(log_probs(z, logsnr), ((0, 0), (0, 1)))
    return jnp.take_along_axis(every, label[:, None], axis=1)[:, 0]

  return log_prob


def _classifier_shift(log_prob, w, z, logsnr, label):
  """Return w grad_z log p(c | z); at w = 0 the classifier is not evaluated."""
  # The sum over the batch gives every example its own gradient in one pass.
  gradient = jax.grad(lambda z: jnp.sum(log_prob(z, logsnr, label)))
  w = jnp.asarray(w)
  return _expand(w, z) * jax.lax.cond(
    jnp.any(w != 0), gradient, jnp.zeros_like, z
  )


def classifier_guidance(denoise, log_prob, w):
  """Guide by eps(z, c) - w sigma grad_z log p(c | z), section 3.1.

  The same with w + 1 on `unconditional(denoise)` is equal where classifier and
  model are exact. Around a classifier-free guided DenoiseFn the strengths add;
  inside of one, (1 + w_free) multiplies this w.

  Args:
    denoise: DenoiseFn, conditional or not, guided or not.
    log_prob: see the head of this module; one example must not depend on
      another.
    w: guidance strength, scalar or [B], may be traced; at w = 0 the classifier
      is not evaluated.

  Returns:
    The guided DenoiseFn, for any step: DDIM's form of classifier guidance is
    this one (arXiv:2105.05233, Algorithm 2).
  """

  def guided(z, logsnr, label):
    prediction = denoise(z, logsnr, label)
    shift = _classifier_shift(log_prob, w, z, logsnr, label)
    eps = prediction.eps + eps_from_score(shift, logsnr)
    return prediction._replace(eps=eps)

  return guided


def marginal(denoise, log_probs):
  """Make the unconditional model of conditional ones, as the discussion does.

  eps(z) = sum_c p(c | z) eps(z, c), which costs one forward per class.

  Args:
    denoise: conditional DenoiseFn of few classes.
    log_probs: (z, logsnr) -> [B, K] log p(c | z_lambda).

  Returns:
    A DenoiseFn that ignores the label. v is averaged as eps is.
  """

  def denoise_marginal(z, logsnr, label):
    log_weights = log_probs(z, logsnr).T  # [K, B]
    predictions = jax.lax.map(
      lambda c: denoise(z, logsnr, jnp.full_like(label, c)),
      jnp.arange(log_weights.shape[0]),
    )
    return jax.tree.map(
      lambda each: jnp.sum(
        jax.vmap(_expand)(jnp.exp(log_weights), each) * each, axis=0
      ),
      predictions,
    )

  return denoise_marginal


def scale_score(denoise, scale):
  """Multiply the score, and so eps, by scale > 1: a low temperature.

  One of the two attempts that the introduction calls ineffective; the other is
  `ancestral_step`'s noise_scale < 1.

  Args:
    denoise: DenoiseFn.
    scale: scalar or [B], may be traced; 1 is the model.

  Returns:
    A DenoiseFn.
  """

  def scaled(z, logsnr, label):
    prediction = denoise(z, logsnr, label)
    return prediction._replace(eps=_expand(scale, z) * prediction.eps)

  return scaled


def without_own_v(denoise):
  """Make a DenoiseFn without the v that its network predicts."""

  def denoise_eps(z, logsnr, label):
    return Prediction(denoise(z, logsnr, label).eps)

  return denoise_eps


# Sampling: Algorithm 2.


def clip(x):
  """Clip predicted x to the data range [-1, 1]: the usual threshold."""
  return jnp.clip(x, -1.0, 1.0)


def no_threshold(x):
  """Leave predicted x as it is."""
  return x


def predictor(denoise, *, threshold, v):
  """Make the predict of a sampler, Algorithm 2, lines 3 and 4.

  Args:
    denoise: DenoiseFn, guided or not.
    threshold: x -> x, applied to every predicted x.
    v: variance interpolation where the network predicts none of its own.

  Returns:
    (z [B, ...], logsnr [], label [B]) -> (x [B, ...], v): the predicted clean
    images, and the network's v [B, ...] or the constant.
  """

  def predict(z, logsnr, label):
    eps, own_v = denoise(z, jnp.full(z.shape[:1], logsnr, z.dtype), label)
    x = threshold(x_from_eps(z, eps, logsnr))
    return x, v if own_v is None else own_v

  return predict


def reverse_distribution(z, x, v, *, logsnr_from, logsnr_to):
  """Return p(z_lambda' | z_lambda): q(z_lambda' | z_lambda, x) with eq. 4.

  Args:
    z: [B, ...] at logsnr_from.
    x: [B, ...] predicted from it.
    v: variance interpolation, scalar or [B, ...].
    logsnr_from: scalar lambda.
    logsnr_to: scalar lambda' > lambda.

  Returns:
    (mean, log variance): [B, ...]; the variance is of v's shape.
  """
  coefficient_z, coefficient_x, _ = posterior(
    logsnr_from=logsnr_from, logsnr_to=logsnr_to
  )
  log_variance = reverse_log_variance(
    logsnr_from=logsnr_from, logsnr_to=logsnr_to, v=v
  )
  return coefficient_z * z + coefficient_x * x, log_variance


def ancestral_step(keys, z, x, v, logsnr_from, logsnr_to, *, noise_scale=1.0):
  """Draw z_lambda' from the reverse process, Algorithm 2, line 5.

  Args:
    keys: [B] random keys of this step.
    z: see `reverse_distribution` for this and the rest.
    x: [B, ...] predicted from z.
    v: variance interpolation.
    logsnr_from: scalar lambda.
    logsnr_to: scalar lambda' > lambda.
    noise_scale: multiplies the standard deviation, may be traced. 1 is
      Algorithm 2; less is the low temperature that the introduction calls
      ineffective.

  Returns:
    z at logsnr_to.
  """
  mean, log_variance = reverse_distribution(
    z, x, v, logsnr_from=logsnr_from, logsnr_to=logsnr_to
  )
  std = noise_scale * jnp.exp(0.5 * log_variance)
  return mean + std * normal(keys, z.shape[1:])


def classifier_ancestral_step(
  keys, z, x, v, logsnr_from, logsnr_to, *, log_prob, label, w
):
  """Draw z_lambda' with the mean moved by w Sigma grad log p(c | z).

  Classifier guidance in its first form (arXiv:2105.05233, Algorithm 1). Sigma
  is this step's variance, per pixel where the model predicts its own v. The
  gradient is taken at z_lambda, as ADM's code does, and not at the mean. The
  shift does not pass the threshold; in the limit of small steps it is that of
  `classifier_guidance`.

  Args:
    keys: [B] random keys of this step.
    z: see `ancestral_step` for this and the next four.
    x: predicted from z by a conditional model; by an unconditional one, w + 1
      takes the place of w.
    v: variance interpolation.
    logsnr_from: scalar lambda.
    logsnr_to: scalar lambda' > lambda.
    log_prob: (z, logsnr [B], label [B]) -> [B].
    label: [B] int class.
    w: guidance strength, see `classifier_guidance`.

  Returns:
    z at logsnr_to.
  """
  mean, log_variance = reverse_distribution(
    z, x, v, logsnr_from=logsnr_from, logsnr_to=logsnr_to
  )
  logsnr = jnp.full(z.shape[:1], logsnr_from, z.dtype)
  shift = _classifier_shift(log_prob, w, z, logsnr, label)
  noise = jnp.exp(0.5 * log_variance) * normal(keys, z.shape[1:])
  return mean + jnp.exp(log_variance) * shift + noise


def ddim_step(keys, z, x, v, logsnr_from, logsnr_to):
  """Move z along the deterministic path of DDIM, arXiv:2010.02502 eq. 12.

  The noise direction is the one that belongs to the thresholded x. Arguments as
  for `ancestral_step`; keys and v are not used.

  Returns:
    z at logsnr_to.
  """
  del keys, v
  alpha_from, sigma_from = alpha_sigma(logsnr_from)
  alpha_to, sigma_to = alpha_sigma(logsnr_to)
  return alpha_to * x + (sigma_to / sigma_from) * (z - alpha_from * x)


# What configs may name; keyword parameters are settings of the same name.
STEPS = {"ancestral": ancestral_step, "ddim": ddim_step}


def sample(step, predict, keys, label, *, shape, logsnrs):
  """Run a sampler from noise to data, Algorithm 2.

  T network evaluations at lambda_1 .. lambda_T, T - 1 transitions; the sample
  is the predicted x at lambda_T. The noise of an image depends on its key and
  the number of the step alone: fold 0 starts it, fold t drives transition t.

  Args:
    step: step function, such as `ancestral_step`.
    predict: of `predictor`.
    keys: [B] random keys, one per image.
    label: [B] int class.
    shape: shape of one image.
    logsnrs: [T] increasing log-SNR, may be traced; see `logsnr_grid`.

  Returns:
    [B, *shape] samples.
  """
  num_steps = logsnrs.shape[0]

  def body(z, inputs):
    t, logsnr, logsnr_next = inputs
    x, v = predict(z, logsnr, label)
    # Line 5. The last x is the sample; predicted after the loop, it would cost
    # the compiled program a second copy of the network.
    z = jax.lax.cond(
      t < num_steps,
      lambda: step(fold_in(keys, t), z, x, v, logsnr, logsnr_next),
      lambda: x,
    )
    return z, None

  # lambda_T has no successor: its entry is a placeholder that is never used.
  logsnrs_next = jnp.append(logsnrs[1:], logsnrs[-1])
  z = normal(fold_in(keys, 0), shape)
  z, _ = jax.lax.scan(
    body, z, (jnp.arange(1, num_steps + 1), logsnrs, logsnrs_next)
  )
  return z


def image_keys(seed, index):
  """Return the keys [B] of images `index` [B]: fold_in(root(seed), i)."""
  return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(
    index
  )
