"""Classifier guidance, and what later papers made of guidance.

Functions of the types of `cfgd.diffusion`, and four more:

  log_probs  (z, logsnr [B]) -> [B, K] log p(c | z_lambda) of all classes
  score      (z, logsnr [B], label [B]) -> [B, ...] w grad_z log p(c | z_lambda)
  weight     logsnr [B] -> w [B], a strength that changes with the noise level
  combine    (eps, eps_other, w) -> eps, how guidance combines two predictions

They nest. Classifier-free guidance with a rising weight, limited to an
interval:

  weight = interval(linear(1.5, schedule=schedule), low=-2, high=3)

  def guided(z, logsnr, label):
    guide = diffusion.classifier_free_guidance(
      denoise, weight(logsnr), null_label=1000, two_passes=True
    )
    return guide(z, logsnr, label)

Where w is 0 for the whole batch, as outside the interval, the second network is
skipped on the device.
"""

import jax
import jax.numpy as jnp

from cfgd import diffusion

# Guidance by a noisy classifier: section 3.1, and Dhariwal & Nichol,
# arXiv:2105.05233.


def classifier_score(log_probs, w):
  """Return the score w grad_z log p(c | z) of a noisy classifier.

  The null label means any class: it has probability 1 and gradient 0, so that
  classifier guidance and classifier-free guidance wrap each other in either
  order.

  Args:
    log_probs: (z, logsnr) -> [B, K]; no example may depend on another.
    w: guidance strength, scalar or [B], may be traced; the classifier is not
      evaluated where it is 0 for the whole batch.

  Returns:
    (z, logsnr, label) -> [B, ...].
  """
  w = jnp.asarray(w)

  def score(z, logsnr, label):
    def log_prob(z):
      every = jnp.pad(log_probs(z, logsnr), ((0, 0), (0, 1)))
      # The sum gives every example its own gradient in one pass.
      return jnp.sum(jnp.take_along_axis(every, label[:, None], axis=1))

    gradient = jax.lax.cond(
      jnp.any(w != 0), jax.grad(log_prob), jnp.zeros_like, z
    )
    return diffusion.expand(w, z) * gradient

  return score


def classifier_guidance(denoise, score):
  """Guide by eps(z, c) - w sigma grad_z log p(c | z), section 3.1.

  DDIM's form of classifier guidance (arXiv:2105.05233, Algorithm 2), here for
  any sampler; ADM's other form is `diffusion.ancestral_mean_shift`. With w + 1
  on the unconditional model the result is the same where model and classifier
  are exact. Around classifier-free guidance the strengths add; inside,
  (1 + w_free) multiplies this w.

  Args:
    denoise: DenoiseFn, conditional or not, guided or not.
    score: of `classifier_score`.

  Returns:
    The guided DenoiseFn.
  """

  def guided(z, logsnr, label):
    prediction = denoise(z, logsnr, label)
    _, sigma = diffusion.alpha_sigma(logsnr)
    shift = diffusion.expand(sigma, z) * score(z, logsnr, label)
    return prediction._replace(eps=prediction.eps - shift)

  return guided


def marginal(denoise, log_probs):
  """Return the unconditional model sum_c p(c | z) eps(z, c), section 5.

  Args:
    denoise: conditional DenoiseFn; it is evaluated once per class.
    log_probs: (z, logsnr) -> [B, K].

  Returns:
    A DenoiseFn that ignores the label. v is averaged as eps is.
  """

  def denoise_marginal(z, logsnr, label):
    log_weights = log_probs(z, logsnr).T  # [K, B]
    predictions = jax.lax.map(
      lambda c: denoise(z, logsnr, jnp.full_like(label, c)),
      jnp.arange(log_weights.shape[0]),
    )
    expand = jax.vmap(diffusion.expand)
    return jax.tree.map(
      lambda each: jnp.sum(expand(jnp.exp(log_weights), each) * each, axis=0),
      predictions,
    )

  return denoise_marginal


def scale_score(denoise, scale):
  """Multiply the score, and so eps, by scale > 1: a low temperature.

  One of the two attempts that the introduction calls ineffective; the other is
  a `noise_scale` below 1 in `diffusion.ancestral`.
  """

  def scaled(z, logsnr, label):
    prediction = denoise(z, logsnr, label)
    return prediction._replace(eps=diffusion.expand(scale, z) * prediction.eps)

  return scaled


# A network that does what guidance does.


def distillation_loss(
  student, teacher, keys, x, label, *, w_low, w_high, null_label, schedule
):
  """Return the error of a student that takes w, of each example.

  Meng et al., arXiv:2210.03142, section 3.1: the student learns the teacher's
  guided prediction for every w. The error is that of eps at the noise levels of
  `diffusion.loss`, here as a part of 1 + w, by which guidance multiplies
  eps(z, c): else large w drown the small ones, where the best samples are.

  Args:
    student: w [B] -> DenoiseFn under training.
    teacher: DenoiseFn, trained with label dropout.
    keys: [B] random keys, one per example.
    x: [B, ...] clean data in [-1, 1].
    label: [B] int class.
    w_low: least guidance strength; w is uniform from it to w_high.
    w_high: greatest.
    null_label: label of the unconditional model.
    schedule: diffusion.Schedule.

  Returns:
    [B] squared error of eps / (1 + w), a mean over the dimensions of x.
  """
  key_u, key_eps, key_w = (diffusion.fold_in(keys, i) for i in range(3))
  logsnr = schedule.logsnr(jax.vmap(jax.random.uniform)(key_u))
  w = w_low + (w_high - w_low) * jax.vmap(jax.random.uniform)(key_w)
  z = diffusion.diffuse(x, diffusion.normal(key_eps, x.shape[1:]), logsnr)
  labels = jnp.stack([label, jnp.full_like(label, null_label)])
  eps = diffusion.denoise_branches(teacher, z, logsnr, labels).eps
  guided = jax.lax.stop_gradient(diffusion.extrapolate(*eps, w))
  error = (student(w)(z, logsnr, label).eps - guided) / diffusion.expand(
    1 + w, x
  )
  return jnp.mean(jnp.square(error), axis=tuple(range(1, x.ndim)))


# Strengths that depend on the noise level.


def constant(w, *, schedule):
  """Return the weight w(lambda) = w."""
  del schedule
  return lambda logsnr: jnp.broadcast_to(w, logsnr.shape)


def linear(w, *, schedule):
  """Return a weight that rises linearly in u, from 0 at noise to 2 w at data.

  Its mean over the steps of a sampler is w (Wang et al., arXiv:2404.13040).
  """
  return lambda logsnr: w * (2.0 * (1.0 - schedule.u(logsnr)))


def cosine(w, *, schedule):
  """Return the weight w (1 + cos(pi u)), from 0 at noise to 2 w at data.

  Its mean over the steps of a sampler is w (Wang et al., arXiv:2404.13040).
  """
  return lambda logsnr: w * (1.0 + jnp.cos(jnp.pi * schedule.u(logsnr)))


def interval(weight, *, low, high):
  """Limit a weight to low <= lambda < high; it is 0 elsewhere.

  Kynkaanniemi et al., arXiv:2404.07724. Their sigma is exp(-lambda / 2): sigma
  in (a, b] is lambda in [-2 log b, -2 log a). Both ends may be traced.
  """

  def limited(logsnr):
    inside = (low <= logsnr) & (logsnr < high)
    return jnp.where(inside, weight(logsnr), 0.0)

  return limited


# How two predictions combine, and what bounds the predicted x.


def rescaled(eps, eps_other, w, *, phi):
  """Combine by eq. 6, with the contrast of the conditional prediction.

  Lin et al., arXiv:2305.08891, section 3.4: the guided eps is scaled to the
  standard deviation of eps(z, c) over each image, and mixed with the unscaled
  one.

  Args:
    eps: [B, ...] eps(z, c).
    eps_other: [B, ...] eps(z).
    w: guidance strength, scalar or [B].
    phi: share of the scaled one, scalar; 0 is eq. 6.

  Returns:
    [B, ...] guided eps.
  """
  guided = diffusion.extrapolate(eps, eps_other, w)
  axes = tuple(range(1, eps.ndim))
  std = jnp.std(guided, axis=axes, keepdims=True)
  ratio = jnp.std(eps, axis=axes, keepdims=True) / jnp.where(std > 0, std, 1.0)
  return (phi * ratio + (1.0 - phi)) * guided


def dynamic_threshold(x, *, quantile):
  """Clip each predicted x to its own quantile of |x| and divide by it.

  Imagen (Saharia et al., arXiv:2205.11487, section 2.3). An x whose quantile is
  below 1 is clipped to [-1, 1].

  Args:
    x: [B, ...] predicted x.
    quantile: in [0, 1], such as 0.995; 1 only divides.

  Returns:
    [B, ...] in [-1, 1].
  """
  flat = jnp.abs(x).reshape(x.shape[0], -1)
  limit = jnp.maximum(jnp.quantile(flat, quantile, axis=1), 1.0)
  limit = diffusion.expand(limit, x)
  return jnp.clip(x, -limit, limit) / limit
