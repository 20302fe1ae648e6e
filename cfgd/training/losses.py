"""What is trained: a loss per example for each task, and a probe of it.

A loss is `(params, keys [B], batch, traced) -> (loss [B], measured)`: the batch
is {"image": [B, H, W, C] uint8, "label": [B]}, `traced` a dict of scalars that
do not recompile, and `measured` one of (value [B], weight [B]), whose weighted
means are logged. The same arguments make the same function, so that what is
compiled for one run of a sweep serves the next.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cfgd import diffusion
from cfgd.data import pixels
from cfgd.models import parametrization

_NOISE_BANDS = 4


@functools.cache
def diffusion_loss(network, *, null_label, timesteps, logsnr_min, logsnr_max):
  """Make the loss of Algorithm 1 for a Flax network.

  Args:
    network: Flax module, (z, time, label, dropout_keys) -> eps.
    null_label: label of the unconditional model.
    timesteps: see `parametrization.denoiser`.
    logsnr_min: lower end of the schedule.
    logsnr_max: upper end of the schedule.

  Returns:
    A loss that reads "p_uncond" in `traced`.
  """
  schedule = {"logsnr_min": logsnr_min, "logsnr_max": logsnr_max}

  def loss(params, keys, batch, traced):
    def apply(z, time, label):
      dropout_keys = diffusion.fold_in(keys, 1)
      return network.apply({"params": params}, z, time, label, dropout_keys)

    values = diffusion.loss(
      parametrization.denoiser(apply, timesteps=timesteps, **schedule),
      diffusion.fold_in(keys, 0),
      pixels.to_x(batch["image"]),
      batch["label"],
      p_uncond=traced["p_uncond"],
      null_label=null_label,
      **schedule,
    )
    return values, {}

  return loss


@functools.cache
def classifier_loss(network, *, timesteps, logsnr_min, logsnr_max):
  """Make the loss of the noisy classifier p(c|z), at the model's noise levels.

  Cross entropy at lambda(u), u uniform: Dhariwal & Nichol, arXiv:2105.05233,
  section 4, with the schedule of the diffusion model in place of theirs.

  Args:
    network: Flax module, (z, time, dropout_keys) -> logits.
    timesteps: see `parametrization.denoiser`.
    logsnr_min: lower end of the schedule.
    logsnr_max: upper end of the schedule.

  Returns:
    A loss that measures the accuracy, in all and by quarters of u from clean
    (u=0) to noise (u=1).
  """
  schedule = {"logsnr_min": logsnr_min, "logsnr_max": logsnr_max}

  def loss(params, keys, batch, traced):
    del traced

    def apply(z, time):
      dropout_keys = diffusion.fold_in(keys, 1)
      return network.apply({"params": params}, z, time, dropout_keys)

    logits_of = parametrization.classifier(
      apply, timesteps=timesteps, **schedule
    )
    key_u, key_eps = (
      diffusion.fold_in(diffusion.fold_in(keys, 0), i) for i in range(2)
    )
    u = jax.vmap(jax.random.uniform)(key_u)
    logsnr = diffusion.logsnr_schedule(u, **schedule)
    x, label = pixels.to_x(batch["image"]), batch["label"]
    z = diffusion.diffuse(x, diffusion.normal(key_eps, x.shape[1:]), logsnr)
    logits = logits_of(z, logsnr)
    values = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return values, _accuracy(logits.argmax(axis=-1) == label, u)

  return loss


def _accuracy(right, u):
  """Return the accuracy as `measured` has it, in all and by noise."""
  right = right.astype(jnp.float32)
  measured = {"accuracy": (right, jnp.ones_like(u))}
  band = jnp.minimum(jnp.floor(u * _NOISE_BANDS), _NOISE_BANDS - 1)
  for i in range(_NOISE_BANDS):
    inside = (band == i).astype(jnp.float32)
    low, high = i / _NOISE_BANDS, (i + 1) / _NOISE_BANDS
    measured[f"accuracy_u{low:g}-{high:g}"] = (right * inside, inside)
  return measured


def conditioning_fault(loss, params, batch):
  """Look for a network that ignores the label, or sees it where it is dropped.

  The parameters are perturbed first: a fresh network's last layer is zero and
  hides everything.

  Args:
    loss: of `diffusion_loss`.
    params: network parameters.
    batch: {"image" [B, ...], "label" [B]} of at least one example.

  Returns:
    None, or what is wrong.
  """
  # On the host: a compiler takes seconds for so many random arrays.
  rng = np.random.default_rng(0)
  perturbed = jax.tree.map(
    lambda leaf: leaf + 0.05 * rng.standard_normal(leaf.shape, np.float32),
    jax.device_get(params),
  )

  @jax.jit
  def losses(perturbed, cases):
    keys = diffusion.image_keys(0, jnp.arange(label.shape[0]))

    def one(case):
      label, p_uncond = case
      traced = {"p_uncond": p_uncond}
      return loss(perturbed, keys, batch | {"label": label}, traced)[0]

    # One program for all cases, so that equal means equal to the bit.
    return jax.lax.map(one, cases)

  label = jnp.asarray(batch["label"])
  other = jnp.where(label == 0, 1, 0).astype(label.dtype)
  labels = jnp.stack([label, other, label, other])
  dropped, also_dropped, kept, also_kept = losses(
    perturbed, (labels, jnp.array([1.0, 1.0, 0.0, 0.0]))
  )
  if (dropped != also_dropped).any():
    return "the network sees labels that were dropped (p_uncond=1)"
  if (kept == also_kept).any():
    return "the network's output does not depend on the label (p_uncond=0)"
  return None
