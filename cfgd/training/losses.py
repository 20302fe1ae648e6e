"""A loss per example for each task, and a probe of conditioning.

A loss is `(params, keys [B], batch, traced) -> (loss [B], measured)`: the batch
is {"image": [B, H, W, C] uint8, "label": [B]}, `traced` a dict of scalars that
do not recompile, and `measured` a dict of (value [B], weight [B]) whose
weighted means are logged. Equal arguments give the same function, so that what
is compiled for one run of a sweep serves the next.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cfgd import diffusion
from cfgd import guidance
from cfgd.data import pixels

_NOISE_BANDS = 4


@functools.cache
def diffusion_loss(model, null_label):
  """Return the loss of Algorithm 1; it reads "p_uncond" in `traced`.

  Args:
    model: parametrization.Model, whose network takes dropout keys.
    null_label: label of the unconditional model.
  """

  def loss(params, keys, batch, traced):
    values = diffusion.loss(
      model.denoiser(params, diffusion.fold_in(keys, 1)),
      diffusion.fold_in(keys, 0),
      pixels.to_x(batch["image"]),
      batch["label"],
      p_uncond=traced["p_uncond"],
      null_label=null_label,
      schedule=model.schedule,
    )
    return values, {}

  return loss


@functools.cache
def student_loss(model, teacher, null_label):
  """Return the loss of a guided student, see `guidance.distillation_loss`.

  It reads "teacher", the teacher's parameters, "w_low" and "w_high" in
  `traced`.

  Args:
    model: parametrization.Model, whose network takes w and dropout keys.
    teacher: parametrization.Model.
    null_label: label of the unconditional model.
  """

  def loss(params, keys, batch, traced):
    dropout_keys = diffusion.fold_in(keys, 1)
    values = guidance.distillation_loss(
      lambda w: model.denoiser(params, dropout_keys, w=w),
      teacher.denoiser(traced["teacher"]),
      diffusion.fold_in(keys, 0),
      pixels.to_x(batch["image"]),
      batch["label"],
      w_low=traced["w_low"],
      w_high=traced["w_high"],
      null_label=null_label,
      schedule=model.schedule,
    )
    return values, {}

  return loss


@functools.cache
def classifier_loss(model):
  """Return the loss of a noisy classifier p(c|z) at the model's noise levels.

  Cross entropy at lambda(u), u uniform: Dhariwal & Nichol, arXiv:2105.05233,
  section 4, with the schedule of the diffusion model in place of theirs. It
  measures the accuracy, overall and by quarters of u from clean (u=0) to noise
  (u=1).

  Args:
    model: parametrization.Model, whose network takes dropout keys.
  """

  def loss(params, keys, batch, traced):
    del traced
    classify = model.classifier(params, diffusion.fold_in(keys, 1))
    key_u, key_eps = (
      diffusion.fold_in(diffusion.fold_in(keys, 0), i) for i in range(2)
    )
    u = jax.vmap(jax.random.uniform)(key_u)
    logsnr = model.schedule.logsnr(u)
    x, label = pixels.to_x(batch["image"]), batch["label"]
    z = diffusion.diffuse(x, diffusion.normal(key_eps, x.shape[1:]), logsnr)
    logits = classify(z, logsnr)
    values = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return values, _accuracy(logits.argmax(axis=-1) == label, u)

  return loss


def _accuracy(right, u):
  """Return the accuracy as `measured` has it, overall and by noise level."""
  right = right.astype(jnp.float32)
  measured = {"accuracy": (right, jnp.ones_like(u))}
  band = jnp.minimum(jnp.floor(u * _NOISE_BANDS), _NOISE_BANDS - 1)
  for i in range(_NOISE_BANDS):
    inside = (band == i).astype(jnp.float32)
    low, high = i / _NOISE_BANDS, (i + 1) / _NOISE_BANDS
    measured[f"accuracy_u{low:g}-{high:g}"] = (right * inside, inside)
  return measured


def conditioning_fault(loss, params, batch):
  """Find a network that ignores the label, or sees it where it is dropped.

  The parameters are perturbed first: a fresh network's last layer is zero and
  hides everything else.

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
