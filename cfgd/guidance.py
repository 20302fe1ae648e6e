"""Guidance after the paper: wrappers around what cfgd/diffusion.py gives.

Each takes and returns the shapes of function of `cfgd.diffusion`, and two more:

  weight   logsnr [B] -> w [B], a guidance strength that changes on the way
  combine  (eps, eps_other, w) -> eps, the rule that guidance combines by

They nest. An interval of a rising weight, in classifier-free guidance:

  weight = interval(linear(1.5, logsnr_min=-20, logsnr_max=20), low=-2, high=3)
  denoise = scheduled(
    lambda w: diffusion.classifier_free_guidance(
      denoise, w, null_label=1000, two_passes=True
    ),
    weight,
  )

Every guidance skips its second model or classifier on device where w is 0 for
the whole batch, and so outside of the interval.
"""

import jax.numpy as jnp

from cfgd import diffusion


def scheduled(guidance, weight):
  """Guide with a strength that depends on the log-SNR.

  Args:
    guidance: w [B] -> guided DenoiseFn, such as a guidance of
      `cfgd.diffusion` with all else bound.
    weight: logsnr [B] -> w [B].

  Returns:
    The guided DenoiseFn.
  """

  def guided(z, logsnr, label):
    return guidance(weight(logsnr))(z, logsnr, label)

  return guided


def constant(w):
  """Make the weight w(lambda) = w."""
  return lambda logsnr: jnp.broadcast_to(w, logsnr.shape)


def linear(w, *, logsnr_min, logsnr_max):
  """Make a weight that rises linearly in u from 0 at noise to 2 w at data.

  Its mean over the steps of a sampler is w (Wang et al., arXiv:2404.13040).

  Args:
    w: mean weight, scalar or [B], may be traced.
    logsnr_min: lower end of the schedule.
    logsnr_max: upper end.

  Returns:
    logsnr [B] -> w [B].
  """

  def weight(logsnr):
    u = diffusion.u_of_logsnr(
      logsnr, logsnr_min=logsnr_min, logsnr_max=logsnr_max
    )
    return w * (2.0 * (1.0 - u))

  return weight


def cosine(w, *, logsnr_min, logsnr_max):
  """Make the weight w (1 + cos(pi u)), from 0 at noise to 2 w at data.

  Its mean over the steps of a sampler is w (Wang et al., arXiv:2404.13040).
  Arguments and result as of `linear`.
  """

  def weight(logsnr):
    u = diffusion.u_of_logsnr(
      logsnr, logsnr_min=logsnr_min, logsnr_max=logsnr_max
    )
    return w * (1.0 + jnp.cos(jnp.pi * u))

  return weight


def interval(weight, *, low, high):
  """Limit a weight to low <= lambda < high; it is 0 elsewhere.

  Kynkaanniemi et al., arXiv:2404.07724. Their sigma is exp(-lambda / 2): sigma
  in (a, b] is lambda in [-2 log b, -2 log a).

  Args:
    weight: logsnr [B] -> w [B].
    low: noisiest log-SNR that is guided, may be traced.
    high: log-SNR from which guidance ends, may be traced.

  Returns:
    logsnr [B] -> w [B].
  """

  def limited(logsnr):
    inside = (low <= logsnr) & (logsnr < high)
    return jnp.where(inside, weight(logsnr), 0.0)

  return limited


def autoguidance(denoise, weak, w, *, combine=diffusion.extrapolate):
  """Guide away from a weaker model: (1 + w) eps(z, c) - w eps_weak(z, c).

  Karras et al., arXiv:2406.02507, whose weight is 1 + w. `weak` may be an
  earlier checkpoint or a smaller model. With `diffusion.unconditional` or
  `diffusion.marginal` of a model as `weak` this is classifier-free guidance.

  Args:
    denoise: DenoiseFn.
    weak: DenoiseFn.
    w: guidance strength, see `diffusion.guide_away`.
    combine: see there.

  Returns:
    The guided DenoiseFn. The first model's `v` is passed on.
  """
  return diffusion.guide_away(denoise, weak, w, combine=combine)


def rescaled(eps, eps_other, w, *, phi):
  """Combine by eq. 6, with the contrast of the conditional prediction.

  Lin et al., arXiv:2305.08891, section 3.4: the guided eps is scaled to the
  standard deviation that eps(z, c) has over an image, and mixed with itself
  unscaled.

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

  Imagen (Saharia et al., arXiv:2205.11487, section 2.3); an x whose quantile
  lies in [-1, 1] is clipped as `diffusion.clip` does.

  Args:
    x: [B, ...] predicted x.
    quantile: in [0, 1], 0.995 for example; 1 only divides.

  Returns:
    [B, ...] in [-1, 1].
  """
  flat = jnp.abs(x).reshape(x.shape[0], -1)
  limit = jnp.maximum(jnp.quantile(flat, quantile, axis=1), 1.0)
  limit = limit.reshape((-1,) + (1,) * (x.ndim - 1))
  return jnp.clip(x, -limit, limit) / limit
