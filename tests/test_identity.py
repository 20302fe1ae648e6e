"""Which fields of sampling have an effect, and what names folders."""

import json

import pytest

from cfgd import build
from cfgd import diffusion
from cfgd import identity
from cfgd import methods
from cfgd.runtime import errors
from configs import adm_imagenet64
from configs import embedded
from tests.sampling import test_guided
from tests.sampling import test_sampling as common

# A value of each field that differs from every config below.
OTHER = {
  "w_schedule": "linear",
  "interval": (-2.0, 3.0),
  "rescale": 0.8,
  "classifier_w": 1.5,
  "noise_scale": 0.7,
  "v": 0.9,
  "quantile": 0.6,
  "score_scale": 1.3,
  "seed": 5,
  "logsnr_low": -3.0,
  "logsnr_high": 3.0,
  "rho": 3.0,
  "churn": 2.0,
  "churn_low": -1.0,
  "churn_high": 0.0,
}
_OF_GRIDS = {"logsnr_low", "logsnr_high", "rho"}
_OF_HEUN = {"churn", "churn_low", "churn_high"}
NUMBERS = [name for name in OTHER if name not in ("w_schedule", "rescale")]
GUIDED = {"guidance": "cfg", "w": 2.0}
# Without noise strong guidance drives every pixel to an end of the range.
WEAKLY = {"guidance": "cfg", "w": 0.3}
# What is chosen, the fields of OTHER that are tried with it (those that are
# numbers share a compilation), and those of them that change no image, without
# the numbers of grids and of heun where these are not chosen.
CASES = [
  (GUIDED, OTHER, {"classifier_w", "quantile"}),
  (
    {"guidance": "cfg", "w": 0.0},
    OTHER,
    {"w_schedule", "interval", "rescale", "classifier_w", "quantile"},
  ),
  (GUIDED | {"noise_scale": 0.0}, NUMBERS, {"classifier_w", "quantile", "v"}),
  (GUIDED | {"threshold": "dynamic"}, NUMBERS, {"classifier_w"}),
  (
    GUIDED | {"sampler": "ddim"},
    NUMBERS,
    {"classifier_w", "quantile", "v", "noise_scale"},
  ),
  (
    {"guidance": "none", "w": 0.0},
    NUMBERS,
    {"interval", "classifier_w", "quantile"},
  ),
  (
    {"guidance": "auto", "w": 0.0},
    NUMBERS,
    {"interval", "classifier_w", "quantile"},
  ),
  (
    {"guidance": "classifier_null", "w": 0.0},
    NUMBERS,
    {"interval", "classifier_w", "quantile"},
  ),
  (
    {"guidance": "cfg+classifier", "w": 2.0, "classifier_w": 1.0},
    NUMBERS,
    {"quantile"},
  ),
  (GUIDED | {"grid": "logsnr"}, NUMBERS, {"classifier_w", "quantile", "rho"}),
  (
    WEAKLY | {"sampler": "dpmpp_2m", "grid": "edm"},
    NUMBERS,
    {"classifier_w", "quantile", "v", "noise_scale"},
  ),
  (
    GUIDED | {"sampler": "sde_dpmpp_2m"},
    NUMBERS,
    {"classifier_w", "quantile", "v"},
  ),
  (
    WEAKLY | {"sampler": "heun", "grid": "edm"},
    NUMBERS,
    {"classifier_w", "quantile", "v", "noise_scale", "churn_low", "churn_high"},
  ),
  (
    WEAKLY | {"sampler": "heun", "grid": "edm", "churn": 1.0},
    NUMBERS,
    {"classifier_w", "quantile", "v"},
  ),
]


def at(**fields):
  config = embedded.get_config()
  config.sampling.update(fields)
  return config


def images(config):
  config = config.copy_and_resolve_references()
  kind = config.sampling.guidance
  guide = {"cfg": None, "none": None, "auto": test_guided.WEAK}
  run = common.make(
    test_guided.MODEL,
    guide.get(kind, test_guided.JUDGE),
    **build.sampling_choices(config.sampling)._asdict(),
  )
  numbers = build.sampling_numbers(config.sampling)
  config.sampling.T = 7
  seed, logsnrs = config.sampling.seed, build.logsnrs(config)
  return common.draw(run, range(8), seed=seed, logsnrs=logsnrs, **numbers)


@pytest.mark.parametrize(("chosen", "tried", "idle"), CASES)
def test_fields_without_effect_change_no_image(chosen, tried, idle):
  config = at(**chosen)
  plain = images(config)
  idle = idle | (set() if "grid" in chosen else _OF_GRIDS)
  idle |= set() if chosen.get("sampler") == "heun" else _OF_HEUN
  for field in tried:
    changed = config.copy_and_resolve_references()
    changed.sampling[field] = OTHER[field]
    assert (field in identity.unused(config)) == (field in idle), field
    differ = (images(changed) != plain).any()
    assert differ == (field not in idle), field
    same_name = identity.settings_digest(identity.of_sampling(config)) == (
      identity.settings_digest(identity.of_sampling(changed))
    )
    assert same_name == (field in idle), field


def test_no_strength_is_no_guidance():
  names = {
    identity.settings_digest(identity.of_sampling(at(guidance=kind, w=0.0)))
    for kind in ("none", "cfg", "auto", "marginal", "classifier")
  }
  assert len(names) == 1
  one = at(guidance="cfg+classifier", w=1.0, classifier_w=0.0)
  assert identity.of_sampling(one) == identity.of_sampling(at(w=1.0))
  null = at(guidance="classifier_null", w=0.0)  # its strength is w + 1
  assert identity.of_sampling(null)["sampling.guidance"] == "classifier_null"


def test_the_guiding_network_matters_where_it_guides():
  def idle(**fields):
    return {"guide_dir", "guide_step"} <= set(identity.unused(at(**fields)))

  assert idle(guidance="cfg", w=1.0)
  assert idle(guidance="auto", w=0.0)
  assert idle(guidance="cfg+classifier", w=1.0)
  assert not idle(guidance="cfg+classifier", w=0.0, classifier_w=1.0)
  assert not idle(guidance="auto", w=1.0)
  assert not idle(guidance="classifier_null", w=0.0)


def test_a_new_sampler_uses_what_it_names_and_takes_nothing_away(monkeypatch):
  named = ("v", "w", "quantile", "rescale")
  before = [identity.unused(at(threshold=k)) for k in ("clip", "dynamic")]
  row = diffusion.Sampler(diffusion.ddim, numbers=named, uses_v=False)
  monkeypatch.setitem(diffusion.SAMPLERS, "new", row)
  after = [identity.unused(at(threshold=k)) for k in ("clip", "dynamic")]
  assert after == before
  assert not set(named) & set(identity.unused(at(sampler="new", w=0.0)))


def test_rescale_goes_by_the_strength_of_the_method(monkeypatch):
  row = methods.METHODS["cfg"]._replace(
    strengths=("classifier_w",), at_zero={"classifier_w": "none"}
  )
  monkeypatch.setitem(methods.METHODS, "new", row)
  config = at(guidance="new", w=0.0, classifier_w=1.0)
  assert "rescale" not in identity.unused(config)
  config.sampling.classifier_w = 0.0
  assert "rescale" in identity.unused(config)


def test_who_says_v():
  config = at(v=0.5)
  assert "v" not in identity.unused(config)
  assert identity.unused(config)["v_from"] == "model.learn_sigma"
  config.model.learn_sigma = True
  assert identity.unused(config)["v"] == "sampling.v_from"
  assert "v_from" not in identity.unused(config)
  config.sampling.v_from = "config"
  assert not {"v", "v_from"} & set(identity.unused(config))
  config.sampling.sampler = "ddim"
  assert {"v", "v_from"} <= set(identity.unused(config))


def test_one_line_names_what_is_set_without_effect(monkeypatch):
  lines = []
  monkeypatch.setattr(
    identity.logging,
    "warning",
    lambda text, *arguments: lines.append(text % arguments),
  )
  identity.warn_of_unused(at(w=1.0, v=0.5))
  assert not lines
  identity.warn_of_unused(at(w=0.0, quantile=0.9, interval=(-2, 3)))
  assert lines == [
    "sampling.quantile=0.9 has no effect with sampling.threshold='clip'; "
    "sampling.interval=(-2, 3) has no effect with sampling.w=0.0."
  ]
  # A guiding network has to be there at w = 0, too.
  identity.warn_of_unused(at(guidance="auto", w=0.0, guide_step=3))
  assert len(lines) == 1


def test_what_validation_asks_for_is_not_warned_of(monkeypatch):
  config = adm_imagenet64.get_config()
  config.sampling.update({"sampler": "dpmpp_2m", "v_from": "config"})
  warned = []
  monkeypatch.setattr(identity.logging, "warning", lambda *k: warned.append(k))
  identity.warn_of_unused(config)
  assert not warned


def test_names_do_not_change_when_fields_are_added(set_defaults):
  before = identity.settings_digest(identity.of_sampling(at(w=1.0)))
  set_defaults(sampling_spice=0.0)
  assert identity.settings_digest(identity.of_sampling(at(w=1.0))) == before
  other = identity.of_sampling(at(w=1.0, spice=1.0))
  assert identity.settings_digest(other) != before


def test_a_folder_of_other_defaults_is_refused(tmp_path, set_defaults):
  path = tmp_path / "settings.json"
  config = at(w=1.0)
  name = identity.settings_digest(identity.of_sampling(config))
  identity.claim_settings(path, identity.of_sampling(config), write=False)
  assert not path.exists()
  identity.claim_settings(path, identity.of_sampling(config), write=True)
  assert json.loads(path.read_text())["sampling.v"] == 0.3

  set_defaults(sampling_v=0.2, sampling_spice=0.0)
  changed = identity.of_sampling(at(w=1.0))
  assert identity.settings_digest(changed) == name
  with pytest.raises(
    errors.UserError, match=r"sampling\.v: 0\.3 there, 0\.2 now.*delete"
  ) as caught:
    identity.claim_settings(path, changed, write=True)
  assert "\n" not in str(caught.value)
  identity.claim_settings(
    path, identity.of_sampling(at(w=1.0, v=0.3)), write=True
  )


def test_an_interval_of_integers_is_that_of_floats():
  config = embedded.get_config()
  config.sampling.interval = (-1.0, 3.0)
  as_floats = identity.of_sampling(config)
  config.sampling.interval = (-1, 3)
  assert identity.settings_digest(
    identity.of_sampling(config)
  ) == identity.settings_digest(as_floats)


def test_samples_with_a_shifted_mean_are_recorded_as_a_form():
  """As when this sampler was a form of classifier guidance."""
  config = embedded.get_config()
  config.sampling.update({"guidance": "classifier", "w": 1.0})
  config.sampling.guide_dir = "runs/classifier"
  config.sampling.sampler = "ancestral_mean_shift"
  recorded = identity.of_sampling(config)
  assert recorded["sampling.sampler"] == "ancestral"
  assert recorded["sampling.classifier_form"] == "mean"
  config.sampling.w = 0.0
  assert identity.of_sampling(config) == identity.of_sampling(at(w=0.0))
