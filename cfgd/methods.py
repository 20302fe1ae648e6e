"""What `sampling.guidance`, `w_schedule`, `threshold` and `grid` may be.

One row each. Validation, the planner, the sampler and the names of sample
folders read these rows and know no method by its name. A new guidance is a
function from `Networks` and `Strength` to a DenoiseFn, and a row of METHODS.
Samplers are rows of `diffusion.SAMPLERS`.
"""

from collections.abc import Callable
from collections.abc import Mapping
import types
from typing import Any
from typing import NamedTuple

from cfgd import diffusion
from cfgd import guidance
from cfgd.models import parametrization

# A gradient with respect to the input: forward, and half of a backward pass.
_PASSES_OF_A_GRADIENT = 2


class Networks(NamedTuple):
  """What a method builds from.

  Attributes:
    denoise: DenoiseFn of the model.
    null_label: label of the unconditional model.
    guide: of the row's guiding network: a classifier's `log_probs`, or a weaker
      model's DenoiseFn; else None.
    combine: how two predictions combine, see `diffusion.guide_away`.
    two_passes: see `diffusion.classifier_free_guidance`.
    at: w [B] -> DenoiseFn, of a model that takes w; else None.
  """

  denoise: Callable
  null_label: int
  guide: Callable | None
  combine: Callable
  two_passes: bool
  at: Callable | None = None


class Strength(NamedTuple):
  """Guidance strengths at a noise level: [B], or floats for the planner.

  Attributes:
    w: `sampling.w` times the schedule of w; 0 outside the interval.
    classifier_w: `sampling.classifier_w`, likewise.
  """

  w: Any
  classifier_w: Any


class Costs(NamedTuple):
  """What parts of an evaluation cost, in forward passes of the model.

  Attributes:
    guide: one forward pass of the guiding network.
    branch: another label for the same z, in one call: 1, or less with late
      conditioning.
    classes: the number of classes; no cost.
  """

  guide: float
  branch: float
  classes: int


class Method(NamedTuple):
  """A row of METHODS.

  Attributes:
    build: (Networks, Strength) -> DenoiseFn, without a classifier's score.
    evaluations: (Strength, Costs) -> what predicting one x costs, in forward
      passes of the model.
    tasks: of training, whose models it samples.
    score: None, or (Networks, Strength) -> a classifier's score that is added
      to the model's, see `guidance.classifier_score`.
    guide: task of the guiding network, "classifier" or "diffusion"; "": none.
    null: whether it needs a model that is also trained without labels.
    strengths: the settings that it takes as Strength.
    combines: whether it combines two predictions of eps.
    at_zero: strength -> the method with the same samples where that is 0.
    max_classes: most classes that it is made for; 0: any number.
  """

  build: Callable
  evaluations: Callable
  tasks: tuple[str, ...] = ("diffusion",)
  score: Callable | None = None
  guide: str = ""
  null: bool = False
  strengths: tuple[str, ...] = ("w",)
  combines: bool = True
  at_zero: Mapping[str, str] = types.MappingProxyType({})
  max_classes: int = 0


def _conditional(networks, strength):
  del strength
  return networks.denoise


def _unconditional(networks, strength):
  del strength
  return diffusion.unconditional(
    networks.denoise, null_label=networks.null_label
  )


def _classifier_free(networks, strength):
  return diffusion.classifier_free_guidance(
    networks.denoise,
    strength.w,
    null_label=networks.null_label,
    two_passes=networks.two_passes,
    combine=networks.combine,
  )


def _distilled(networks, strength):
  return networks.at(strength.w)


def _from_weaker(networks, strength):
  return diffusion.guide_away(
    networks.denoise, networks.guide, strength.w, combine=networks.combine
  )


def _from_marginal(networks, strength):
  other = guidance.marginal(networks.denoise, networks.guide)
  return diffusion.guide_away(
    networks.denoise, other, strength.w, combine=networks.combine
  )


def _gradient(w, costs):
  return _PASSES_OF_A_GRADIENT * costs.guide * (w != 0)


def _branch(strength, costs):
  return costs.branch * (strength.w != 0)


METHODS = {
  "none": Method(
    _conditional,
    evaluations=lambda strength, costs: 1,
    tasks=("diffusion", "guided_student"),
    strengths=(),
    combines=False,
  ),
  # Classifier-free guidance, Algorithm 2.
  "cfg": Method(
    _classifier_free,
    evaluations=lambda strength, costs: 1 + _branch(strength, costs),
    null=True,
    at_zero={"w": "none"},
  ),
  # By one network that was trained to predict the guided eps of another,
  # arXiv:2210.03142.
  "distilled": Method(
    _distilled,
    evaluations=lambda strength, costs: 1,
    tasks=("guided_student",),
    combines=False,
    at_zero={"w": "none"},
  ),
  # Away from a weaker model, arXiv:2406.02507.
  "auto": Method(
    _from_weaker,
    evaluations=lambda strength, costs: 1 + costs.guide * (strength.w != 0),
    guide="diffusion",
    at_zero={"w": "none"},
  ),
  # As cfg, with the mean over the classes as unconditional model, section 5.
  "marginal": Method(
    _from_marginal,
    evaluations=lambda strength, costs: (
      1 + (costs.classes + costs.guide) * (strength.w != 0)
    ),
    guide="classifier",
    at_zero={"w": "none"},
    max_classes=100,
  ),
  # By the gradient of a noisy classifier, section 3.1.
  "classifier": Method(
    _conditional,
    evaluations=lambda strength, costs: 1 + _gradient(strength.w, costs),
    score=lambda networks, strength: guidance.classifier_score(
      networks.guide, strength.w
    ),
    guide="classifier",
    combines=False,
    at_zero={"w": "none"},
  ),
  # The same on the unconditional model, with w + 1.
  "classifier_null": Method(
    _unconditional,
    evaluations=lambda strength, costs: 1 + _gradient(strength.w + 1, costs),
    score=lambda networks, strength: guidance.classifier_score(
      networks.guide, strength.w + 1.0
    ),
    guide="classifier",
    null=True,
    combines=False,
  ),
  # Both at once, each with a strength of its own.
  "cfg+classifier": Method(
    _classifier_free,
    evaluations=lambda strength, costs: (
      1 + _branch(strength, costs) + _gradient(strength.classifier_w, costs)
    ),
    score=lambda networks, strength: guidance.classifier_score(
      networks.guide, strength.classifier_w
    ),
    guide="classifier",
    null=True,
    strengths=("w", "classifier_w"),
    at_zero={"classifier_w": "cfg"},
  ),
}


class Threshold(NamedTuple):
  """A row of THRESHOLDS: x -> x, and which settings are its keywords."""

  apply: Callable
  numbers: tuple[str, ...] = ()


THRESHOLDS = {
  "clip": Threshold(diffusion.clip),
  "dynamic": Threshold(guidance.dynamic_threshold, numbers=("quantile",)),
  "none": Threshold(diffusion.no_threshold),
}

# (w, schedule=Schedule) -> weight.
W_SCHEDULES = {
  "constant": guidance.constant,
  "linear": guidance.linear,
  "cosine": guidance.cosine,
}


class Grid(NamedTuple):
  """A row of GRIDS.

  Attributes:
    levels: (parametrization.Model, num, **numbers) -> log-SNRs [num],
      increasing.
    numbers: its keyword arguments that are settings of `sampling`.
    timesteps: of the discrete schedule whose levels these are, which
      `diffusion.timesteps` must name; 0: of none.
  """

  levels: Callable
  numbers: tuple[str, ...] = ()
  timesteps: int = 0


GRIDS = {
  # The paper's.
  "uniform_u": Grid(lambda model, num: model.schedule.grid(num)),
  "logsnr": Grid(
    lambda model, num, **ends: diffusion.even_logsnrs(num, **ends),
    numbers=("logsnr_low", "logsnr_high"),
  ),
  "edm": Grid(
    lambda model, num, **numbers: diffusion.edm_logsnrs(num, **numbers),
    numbers=("logsnr_low", "logsnr_high", "rho"),
  ),
  "adm": Grid(
    lambda model, num: model.respaced(num),
    timesteps=parametrization.NUM_TIMESTEPS,
  ),
}


def without_guide(name, p_uncond):
  """Return a method like `name` for a model without its guiding network.

  Args:
    name: of METHODS.
    p_uncond: of the model; 0 has no unconditional model, 1 no conditional one.
  """
  if p_uncond == 0:
    return "none"
  return "cfg" if METHODS[name].guide or p_uncond == 1 else name
