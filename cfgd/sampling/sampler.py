"""The pmapped sampler: one compiled loop for every w, v and log-SNR grid."""

import functools
import inspect
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cfgd import diffusion
from cfgd import guidance
from cfgd.data import pixels
from cfgd.models import parametrization


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
    v_from: "own", or "config" to leave out the v that a network predicts.
    threshold: "clip", "dynamic" or "none".
    classifier_form: "eps", or "mean" for ADM's shift of the ancestral mean.
    rescale: apply `guidance.rescaled`.
  """

  sampler: str
  guidance: str
  w_schedule: str
  v_from: str
  threshold: str
  classifier_form: str
  rescale: bool


def prefers_two_passes():
  """Say whether the two guidance branches run faster one after the other.

  On CPU a batch of 2B falls out of the caches; accelerators like it.
  """
  return jax.default_backend() == "cpu"


def _profile(choices, numbers, schedule):
  """Return w(lambda) / w: the schedule of w, and 0 outside of the interval."""
  make = {
    "constant": lambda w, **_: guidance.constant(w),
    "linear": guidance.linear,
    "cosine": guidance.cosine,
  }[choices.w_schedule]
  return guidance.interval(
    make(1.0, **schedule),
    low=numbers["interval_low"],
    high=numbers["interval_high"],
  )


def _guide(choices, denoise, second, numbers, profile, **branches):
  """Return the guided DenoiseFn.

  Args:
    choices: Choices.
    denoise: DenoiseFn of the model.
    second: None, log p(c|z) of all classes by a classifier, or a weaker
      model's DenoiseFn.
    numbers: traced settings by name.
    profile: logsnr [B] -> [B], see `_profile`; every strength follows it.
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
  by_classifier = {
    "eps": diffusion.classifier_guidance,
    # The classifier is in the step.
    "mean": lambda denoise, log_prob, w: denoise,
  }[choices.classifier_form]
  away_from = functools.partial(guidance.autoguidance, denoise, combine=combine)

  def guide(share):
    w, classifier_w = share * numbers["w"], share * numbers["classifier_w"]
    return {
      "none": lambda: denoise,
      "cfg": lambda: free(w),
      "auto": lambda: away_from(second, w),
      "marginal": lambda: away_from(diffusion.marginal(denoise, second), w),
      "classifier": lambda: by_classifier(denoise, log_prob, w),
      "classifier_null": lambda: by_classifier(null, log_prob, w + 1.0),
      "cfg+classifier": lambda: by_classifier(free(w), log_prob, classifier_w),
    }[choices.guidance]()

  return guidance.scheduled(guide, profile)


def _threshold(choices, numbers):
  dynamic = functools.partial(
    guidance.dynamic_threshold, quantile=numbers["quantile"]
  )
  return {
    "clip": diffusion.clip,
    "dynamic": dynamic,
    "none": diffusion.no_threshold,
  }[choices.threshold]


def _step(choices, second, numbers, profile, label):
  """Return the step function, its settings bound."""
  if choices.classifier_form == "mean":
    return _shifted_step(choices, second, numbers, profile, label)
  step = diffusion.STEPS[choices.sampler]
  settings = inspect.getfullargspec(step).kwonlyargs
  return functools.partial(step, **{name: numbers[name] for name in settings})


def _shifted_step(choices, second, numbers, profile, label):
  """Return the step of classifier guidance in its first form."""
  more = 1.0 if choices.guidance == "classifier_null" else 0.0

  def step(keys, z, x, v, logsnr_from, logsnr_to):
    return diffusion.classifier_ancestral_step(
      *(keys, z, x, v, logsnr_from, logsnr_to),
      log_prob=diffusion.log_prob_of_label(second),
      label=label,
      w=numbers["w"] * profile(logsnr_from) + more,
    )

  return step


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
    if choices.v_from == "config":
      denoise = diffusion.without_own_v(denoise)
    other = _second(choices, second, params[1])
    profile = _profile(choices, numbers, schedule)
    denoise = _guide(
      *(choices, denoise, other, numbers, profile),
      null_label=null_label,
      two_passes=two_passes,
    )
    predict = diffusion.predictor(
      diffusion.scale_score(denoise, numbers["score_scale"]),
      threshold=_threshold(choices, numbers),
      v=numbers["v"],
    )
    x = diffusion.sample(
      _step(choices, other, numbers, profile, label),
      predict,
      diffusion.image_keys(seed, index),
      label,
      shape=shape,
      logsnrs=logsnrs,
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
