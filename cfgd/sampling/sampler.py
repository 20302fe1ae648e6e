"""The pmapped sampler: one compiled loop for every w, v and log-SNR grid."""

import functools

import jax
import jax.numpy as jnp

from cfgd import diffusion
from cfgd import parametrization


def make_step(name, *, v, threshold):
  """Return the step function of a sampler by name.

  Args:
    name: "ancestral" (Algorithm 2) or "ddim".
    v: variance interpolation of the ancestral sampler.
    threshold: x -> x.
  """
  steps = {
    "ancestral": functools.partial(diffusion.ancestral_step, v=v),
    "ddim": diffusion.ddim_step,
  }
  return functools.partial(steps[name], threshold=threshold)


def prefers_two_passes():
  """Say whether the two guidance branches run faster one after the other.

  On CPU a batch of 2B falls out of the caches; accelerators like it.
  """
  return jax.default_backend() == "cpu"


@functools.cache
def make_sampler(
  network,
  *,
  sampler,
  clip,
  shape,
  null_label,
  timesteps,
  logsnr_min,
  logsnr_max,
  two_passes,
):
  """Compile-once sampling for a network, over this process's devices.

  Cached by its arguments, so that the cells of a sweep share one compilation
  per number of steps.

  Args:
    network: Flax module, (z, time, label) -> eps; hashable.
    sampler: see `make_step`.
    clip: clip predicted x to [-1, 1].
    shape: (H, W, C).
    null_label: label of the unconditional model.
    timesteps: see `parametrization.denoiser`.
    logsnr_min: lower end of the schedule that the network was trained with.
    logsnr_max: upper end.
    two_passes: see `diffusion.classifier_free_guidance`.

  Returns:
    pmapped (params, index [D, B], label [D, B], seed, w, v, logsnrs [T]) ->
    (images [D, B, H, W, C] uint8, finite [D, B] bool). Image i is a function of
    (seed, i), its label and the settings. All arguments are traced.
  """
  threshold = diffusion.clip if clip else diffusion.no_threshold

  def run(params, index, label, seed, w, v, logsnrs):
    denoise = diffusion.classifier_free_guidance(
      parametrization.denoiser(
        lambda z, time, label: network.apply(
          {"params": params}, z, time, label
        ),
        timesteps=timesteps,
        logsnr_min=logsnr_min,
        logsnr_max=logsnr_max,
      ),
      w,
      null_label=null_label,
      two_passes=two_passes,
    )
    x = diffusion.sample(
      make_step(sampler, v=v, threshold=threshold),
      denoise,
      diffusion.image_keys(seed, index),
      label,
      shape=shape,
      logsnrs=logsnrs,
      threshold=threshold,
    )
    # uint8 has no NaN: say here what the conversion would hide.
    finite = jnp.isfinite(x).all(axis=(1, 2, 3))
    pixels = jnp.clip(jnp.rint((x + 1.0) * 127.5), 0, 255)
    return pixels.astype(jnp.uint8), finite

  return jax.pmap(
    run,
    axis_name="batch",
    in_axes=(None, 0, 0, None, None, None, None),
    devices=jax.local_devices(),
  )
