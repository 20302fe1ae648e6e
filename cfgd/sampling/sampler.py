"""The pmapped sampler: one compiled loop for every w, v and log-SNR grid."""

import functools
import inspect
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cfgd import diffusion
from cfgd import guidance
from cfgd import parametrization
from cfgd import pixels


class Part(NamedTuple):
  """A network of a sampler, hashable.

  Attributes:
    network: Flax module.
    timesteps: see `parametrization.denoiser`.
    logsnr_min: lower end of the schedule that it was trained with.
    logsnr_max: upper end.
  """

  network: Any
  timesteps: str
  logsnr_min: float
  logsnr_max: float

  def with_params(self, params, make):
    """Return make(apply, **parametrization), for `parametrization`'s makers."""
    schedule = self._asdict()
    network = schedule.pop("network")
    apply = functools.partial(network.apply, {"params": params})
    return make(apply, **schedule)


class Choices(NamedTuple):
  """What a sampler does: each combination is a compilation of its own.

  Attributes:
    sampler: of `diffusion.STEPS`.
    guidance: "none", "cfg", "auto", "classifier", "classifier_null" (of the
      unconditional model, with w + 1), "cfg+classifier", or "marginal"
      (classifier-free, with `diffusion.marginal` in the null label's place).
    w_schedule: "constant", "linear" or "cosine", see `guidance`.
    threshold: "clip", "dynamic" or "none".
    classifier_form: "eps", or "mean" for ADM's shift of the ancestral mean.
    rescale: apply `guidance.rescaled`.
  """

  sampler: str
  guidance: str
  w_schedule: str
  threshold: str
  classifier_form: str
  rescale: bool


def prefers_two_passes():
  """Say whether the two guidance branches run faster one after the other.

  On CPU a batch of 2B falls out of the caches; accelerators like it.
  """
  return jax.default_backend() == "cpu"


def _weight(choices, numbers, schedule):
  """Return w as a function of log-SNR, 0 outside of the interval."""
  make = {
    "constant": lambda w, **_: guidance.constant(w),
    "linear": guidance.linear,
    "cosine": guidance.cosine,
  }[choices.w_schedule]
  return guidance.interval(
    make(numbers["w"], **schedule),
    low=numbers["interval_low"],
    high=numbers["interval_high"],
  )


def _guide(choices, denoise, second, numbers, weight, **branches):
  """Return the guided DenoiseFn.

  Args:
    choices: Choices.
    denoise: DenoiseFn of the model.
    second: None, log p(c|z) of all classes by a classifier, or a weaker
      model's DenoiseFn.
    numbers: traced settings by name.
    weight: logsnr [B] -> w [B].
    **branches: null_label and two_passes of classifier-free guidance.
  """
  combine = diffusion.extrapolate
  if choices.rescale:
    combine = functools.partial(guidance.rescaled, phi=numbers["rescale"])
  free = functools.partial(
    diffusion.classifier_free_guidance, denoise, combine=combine, **branches
  )
  null = diffusion.unconditional(denoise, null_label=branches["null_label"])
  log_prob = diffusion.log_prob_of_label(second)
  by_classifier = diffusion.classifier_guidance
  away_from = functools.partial(guidance.autoguidance, denoise, combine=combine)
  guide = {
    "none": lambda w: denoise,
    "cfg": free,
    "auto": lambda w: away_from(second, w),
    "marginal": lambda w: away_from(diffusion.marginal(denoise, second), w),
    "classifier": lambda w: by_classifier(denoise, log_prob, w),
    "classifier_null": lambda w: by_classifier(null, log_prob, w + 1.0),
    "cfg+classifier": lambda w: by_classifier(
      free(w), log_prob, numbers["classifier_w"]
    ),
  }[choices.guidance]
  return guidance.scheduled(guide, weight)


def _threshold(choices, numbers):
  dynamic = functools.partial(
    guidance.dynamic_threshold, quantile=numbers["quantile"]
  )
  return {
    "clip": diffusion.clip,
    "dynamic": dynamic,
    "none": diffusion.no_threshold,
  }[choices.threshold]


def _shift_mean(choices, denoise, second, numbers, weight, null_label):
  """Return (denoiser, step) of classifier guidance in its first form."""
  more = 0.0
  if choices.guidance == "classifier_null":
    denoise = diffusion.unconditional(denoise, null_label=null_label)
    more = 1.0

  def step(denoise, keys, z, logsnr_from, logsnr_to, label, *, threshold):
    w = weight(jnp.full(z.shape[:1], logsnr_from)) + more
    return diffusion.classifier_ancestral_step(
      *(denoise, keys, z, logsnr_from, logsnr_to, label),
      log_prob=diffusion.log_prob_of_label(second),
      w=w,
      v=numbers["v"],
      threshold=threshold,
    )

  return denoise, step


def _step(choices, numbers):
  """Return the step function of a sampler by name, its settings bound."""
  step = diffusion.STEPS[choices.sampler]
  names = inspect.signature(step).parameters
  return functools.partial(
    step, **{name: value for name, value in numbers.items() if name in names}
  )


def _second(choices, part, params):
  """Return what guidance needs beside the model."""
  if part is None:
    return None
  if choices.guidance == "auto":
    return part.with_params(params, parametrization.denoiser)
  logits = part.with_params(params, parametrization.classifier)
  return lambda z, logsnr: jax.nn.log_softmax(logits(z, logsnr))


@functools.cache
def make_sampler(model, second, choices, *, shape, null_label, two_passes):
  """Compile-once sampling for a network, over this process's devices.

  Cached by its arguments, so that the cells of a sweep share one compilation
  per number of steps.

  Args:
    model: Part of the diffusion model.
    second: Part of the classifier or of the weaker model, or None.
    choices: Choices.
    shape: (H, W, C).
    null_label: label of the unconditional model.
    two_passes: see `diffusion.classifier_free_guidance`.

  Returns:
    pmapped (params, index [D, B], label [D, B], seed, numbers, logsnrs [T]) ->
    (images [D, B, H, W, C] uint8, finite [D, B] bool). `params` is (model's,
    second's or None), `numbers` the dict of `config.sampling_numbers`. Image i
    is a function of (seed, i), its label and the settings. All arguments are
    traced.
  """
  schedule = {"logsnr_min": model.logsnr_min, "logsnr_max": model.logsnr_max}

  def run(params, index, label, seed, numbers, logsnrs):
    denoise = model.with_params(params[0], parametrization.denoiser)
    other = _second(choices, second, params[1])
    weight = _weight(choices, numbers, schedule)
    if choices.classifier_form == "mean":
      denoise, step = _shift_mean(
        choices, denoise, other, numbers, weight, null_label
      )
    else:
      step = _step(choices, numbers)
      denoise = _guide(
        *(choices, denoise, other, numbers, weight),
        null_label=null_label,
        two_passes=two_passes,
      )
    threshold = _threshold(choices, numbers)
    x = diffusion.sample(
      functools.partial(step, threshold=threshold),
      diffusion.scale_score(denoise, numbers["score_scale"]),
      diffusion.image_keys(seed, index),
      label,
      shape=shape,
      logsnrs=logsnrs,
      threshold=threshold,
    )
    # uint8 has no NaN: say here what the conversion would hide.
    finite = jnp.isfinite(x).all(axis=(1, 2, 3))
    return pixels.from_x(x), finite

  return jax.pmap(
    run,
    axis_name="batch",
    in_axes=(None, 0, 0, None, None, None),
    devices=jax.local_devices(),
  )
