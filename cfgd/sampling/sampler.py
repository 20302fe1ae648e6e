"""The pmapped sampler: one compiled loop for every w, v and log-SNR grid."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cfgd import diffusion
from cfgd import guidance
from cfgd import methods
from cfgd.data import pixels


class Choices(NamedTuple):
  """Settings that are compiled in, by the names of `sampling`'s fields.

  Attributes:
    sampler: of `diffusion.SAMPLERS`.
    guidance: of `methods.METHODS`.
    w_schedule: of `methods.W_SCHEDULES`.
    v_from: "own", or "config" to ignore the v that a network predicts.
    threshold: of `methods.THRESHOLDS`.
    rescale: whether predictions combine by `guidance.rescaled`.
  """

  sampler: str
  guidance: str
  w_schedule: str
  v_from: str
  threshold: str
  rescale: bool


@functools.cache
def make_sampler(
  model, guide, choices, *, shape, null_label, two_passes, devices=None
):
  """Return the compiled sampler of a network, over some devices.

  Cached by its arguments: the cells of a sweep share one compilation per T.

  Args:
    model: parametrization.Model of the diffusion model.
    guide: that of the guiding network, or None.
    choices: Choices.
    shape: (H, W, C).
    null_label: label of the unconditional model.
    two_passes: see `diffusion.classifier_free_guidance`.
    devices: to run on; None is all of this process.

  Returns:
    pmapped (params, index [D, B], label [D, B], seed, numbers, logsnrs [T]) ->
    (images [D, B, H, W, C] uint8, finite [D, B] bool). `params` is (model's,
    guide's or None), `numbers` the other settings by name. Image i is a
    function of (seed, i), its label and the settings. All arguments are traced.
  """
  sampler = diffusion.SAMPLERS[choices.sampler]

  def run(params, index, label, seed, numbers, logsnrs):
    networks = _networks(
      *(model, guide, params, choices, numbers),
      null_label=null_label,
      two_passes=two_passes,
    )
    predict, score = _predict(networks, choices, numbers, model.schedule)
    keys = diffusion.image_keys(seed, index)
    x = sampler.sample(
      predict,
      keys,
      diffusion.normal(diffusion.fold_in(keys, 0), shape),
      label,
      logsnrs,
      **{name: numbers[name] for name in sampler.numbers},
      **({"score": score} if sampler.without_score else {}),
    )
    # uint8 has no NaN: report here what the conversion would hide.
    finite = jnp.isfinite(x).all(axis=(1, 2, 3))
    return pixels.from_x(x), finite

  return jax.pmap(
    run,
    axis_name="batch",
    in_axes=(None, 0, 0, None, None, None),
    devices=devices or jax.local_devices(),
  )


def _networks(model, guide, params, choices, numbers, **branches):
  """Return the methods.Networks of parameters."""
  denoiser = functools.partial(
    model.denoiser, params[0], own_v=choices.v_from == "own"
  )
  combine = diffusion.extrapolate
  if choices.rescale:
    combine = functools.partial(guidance.rescaled, phi=numbers["rescale"])
  return methods.Networks(
    denoise=denoiser(),
    at=(lambda w: denoiser(w=w)) if model.network.takes_w else None,
    guide=guide and _guide(guide, params[1], choices),
    combine=combine,
    **branches,
  )


def _guide(guide, params, choices):
  """Return the guiding network as `methods.Networks` has it."""
  if methods.METHODS[choices.guidance].guide == "diffusion":
    return guide.denoiser(params)
  logits = guide.classifier(params)
  return lambda z, logsnr: jax.nn.log_softmax(logits(z, logsnr))


def _predict(networks, choices, numbers, schedule):
  """Return (predict, score): guided and thresholded, and a classifier's score.

  The score is None, or for the sampler to apply, see `diffusion.Sampler`.
  """
  method = methods.METHODS[choices.guidance]
  profile = guidance.interval(
    methods.W_SCHEDULES[choices.w_schedule](1.0, schedule=schedule),
    low=numbers["interval_low"],
    high=numbers["interval_high"],
  )

  def at_its_strength(build):
    """Return build's function of (z, logsnr, label) at the strength there."""

    def built(z, logsnr, label):
      share = profile(logsnr)
      names = methods.Strength._fields
      strength = methods.Strength(*(share * numbers[name] for name in names))
      return build(networks, strength)(z, logsnr, label)

    return built

  denoise = at_its_strength(method.build)
  score = method.score and at_its_strength(method.score)
  if score and not diffusion.SAMPLERS[choices.sampler].without_score:
    denoise = guidance.classifier_guidance(denoise, score)
  threshold = methods.THRESHOLDS[choices.threshold]
  predict = diffusion.predictor(
    guidance.scale_score(denoise, numbers["score_scale"]),
    threshold=functools.partial(
      threshold.apply, **{name: numbers[name] for name in threshold.numbers}
    ),
    v=numbers["v"],
  )
  return predict, score
