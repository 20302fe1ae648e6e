"""What networks take and predict, translated to log-SNR.

Our own networks are conditioned on 1000 u(lambda), published ones of ADM on the
timestep of its discrete schedule, which has 0 (clean) to 999.
"""

import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cfgd import diffusion

NUM_TIMESTEPS = 1000


class Model(NamedTuple):
  """A network and the noise levels that it was trained on; hashable.

  Attributes:
    network: Flax module.
    timesteps: "uniform" for our own networks, "adm_cosine" or "adm_linear" for
      ADM's.
    schedule: of its training.
  """

  network: Any
  timesteps: str
  schedule: diffusion.Schedule

  def time(self, logsnr):
    """Return what the network is conditioned on, of logsnr's shape."""
    if self.timesteps == "uniform":
      return 1000.0 * self.schedule.u(logsnr)
    return adm_timestep(logsnr, self.timesteps.removeprefix("adm_"))

  def respaced(self, num):
    """Return `adm_respaced` log-SNRs of the network's discrete schedule."""
    return adm_respaced(self.timesteps.removeprefix("adm_"), num)

  def denoiser(self, params, *dropout_keys, w=None, own_v=True):
    """Return the DenoiseFn of a diffusion network.

    Its `v` is None unless the network has 2C channels, ADM's learned sigma.
    Networks with late conditioning have `branches`, see
    `diffusion.denoise_branches`.

    Args:
      params: of the network.
      *dropout_keys: [B] keys; none switches dropout off.
      w: [B] guidance strength, for a network that takes it; None is 0.
      own_v: whether to return the v that a network predicts.
    """
    strength = {} if w is None else {"w": w}

    def denoise(z, logsnr, label):
      out = self.network.apply(
        *({"params": params}, z, self.time(logsnr), label),
        *dropout_keys,
        **strength,
      )
      channels = z.shape[-1]
      assert out.shape[-1] in (channels, 2 * channels), (out.shape, z.shape)
      if out.shape[-1] == channels:
        return diffusion.Prediction(out)
      eps, raw = jnp.split(out, 2, axis=-1)
      # The variance is exp(v log beta + (1 - v) log beta~), arXiv:2102.09672
      # eq. 15; the network predicts 2 v - 1 and, as there, is not clipped.
      return diffusion.Prediction(eps, (raw + 1.0) / 2.0 if own_v else None)

    def branches(z, logsnr, labels):
      predictions = denoise(z, logsnr, labels.reshape(-1))
      shape = (labels.shape[0], *z.shape)
      return jax.tree.map(lambda array: array.reshape(shape), predictions)

    if self.network.condition == "decoder" and w is None:
      denoise.branches = branches
    return denoise

  def classifier(self, params, *dropout_keys):
    """Return a noisy classifier: (z, logsnr [B]) -> logits [B, K]."""

    def logits(z, logsnr):
      return self.network.apply(
        {"params": params}, z, self.time(logsnr), *dropout_keys
      )

    return logits


@functools.cache
def adm_logsnrs(schedule):
  """Return the log-SNRs [1000] float64 of ADM's timesteps, decreasing.

  Args:
    schedule: "linear" (Ho et al., arXiv:2006.11239, section 4) or "cosine"
      (Nichol & Dhariwal, arXiv:2102.09672, eq. 17).
  """
  if schedule == "linear":
    betas = np.linspace(1e-4, 0.02, NUM_TIMESTEPS)
  else:
    assert schedule == "cosine", schedule
    s = np.arange(NUM_TIMESTEPS + 1) / NUM_TIMESTEPS
    level = np.cos((s + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1.0 - level[1:] / level[:-1], 0.999)
  alpha_bar = np.cumprod(1.0 - betas)
  return np.log(alpha_bar) - np.log1p(-alpha_bar)


def adm_respaced(schedule, num):
  """Return the log-SNRs [num] of ADM's respaced timesteps, increasing.

  Evenly spaced and rounded, as its timestep_respacing=num: 250 is how its
  samples were published.

  Args:
    schedule: see `adm_logsnrs`.
    num: from 2 to 1000.
  """
  stride = (NUM_TIMESTEPS - 1) / (num - 1)
  # Strides add up one by one, as there: ties round the same.
  timesteps = np.rint(np.cumsum([0.0] + [stride] * (num - 1))).astype(int)
  return jnp.float32(adm_logsnrs(schedule)[timesteps[::-1]])


def adm_timestep(logsnr, schedule):
  """Return the timestep of a log-SNR, linear in log-SNR between timesteps.

  Args:
    logsnr: any shape; beyond the schedule's range the nearer end counts.
    schedule: see `adm_logsnrs`.

  Returns:
    float32 in [0, 999], of logsnr's shape.
  """
  rising = np.float32(adm_logsnrs(schedule)[::-1])
  timesteps = np.arange(NUM_TIMESTEPS, dtype=np.float32)[::-1]
  return jnp.interp(jnp.asarray(logsnr, jnp.float32), rising, timesteps)
