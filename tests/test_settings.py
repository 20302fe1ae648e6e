"""Which fields of sampling have an effect, and what names folders."""

import json

import pytest

from cfgd import config as config_lib
from cfgd import settings
from cfgd.runtime import errors
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
}
NUMBERS = [name for name in OTHER if name not in ("w_schedule", "rescale")]
GUIDED = {"guidance": "cfg", "w": 2.0}
# What is chosen, the fields of OTHER that are tried with it (those that are
# numbers share a compilation), and those of them that change no image.
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
]


def at(**fields):
  config = embedded.get_config()
  config.sampling.update(fields)
  return config


def images(config):
  kind = config.sampling.guidance
  second = {"cfg": None, "none": None, "auto": test_guided.WEAK}
  run = common.make(
    test_guided.MODEL,
    second.get(kind, test_guided.JUDGE),
    **config_lib.sampling_choices(config),
  )
  numbers = config_lib.sampling_numbers(config)
  return common.draw(run, range(8), seed=config.sampling.seed, **numbers)


@pytest.mark.parametrize(("chosen", "tried", "idle"), CASES)
def test_fields_without_effect_change_no_image(chosen, tried, idle):
  config = at(**chosen)
  plain = images(config)
  for field in tried:
    changed = config.copy_and_resolve_references()
    changed.sampling[field] = OTHER[field]
    assert (field in settings.unused(config)) == (field in idle), field
    differ = (images(changed) != plain).any()
    assert differ == (field not in idle), field
    same_name = settings.digest(settings.of_sampling(config)) == (
      settings.digest(settings.of_sampling(changed))
    )
    assert same_name == (field in idle), field


def test_no_strength_is_no_guidance():
  names = {
    settings.digest(settings.of_sampling(at(guidance=kind, w=0.0)))
    for kind in ("none", "cfg", "auto", "marginal", "classifier")
  }
  assert len(names) == 1
  one = at(guidance="cfg+classifier", w=1.0, classifier_w=0.0)
  assert settings.of_sampling(one) == settings.of_sampling(at(w=1.0))
  null = at(guidance="classifier_null", w=0.0)  # its strength is w + 1
  assert settings.of_sampling(null)["sampling.guidance"] == "classifier_null"


def test_the_second_network_matters_where_it_guides():
  def idle(**fields):
    return {"second_dir", "second_step"} <= set(settings.unused(at(**fields)))

  assert idle(guidance="cfg", w=1.0)
  assert idle(guidance="auto", w=0.0)
  assert idle(guidance="cfg+classifier", w=1.0)
  assert not idle(guidance="cfg+classifier", w=0.0, classifier_w=1.0)
  assert not idle(guidance="auto", w=1.0)
  assert not idle(guidance="classifier_null", w=0.0)


def test_who_says_v():
  config = at(v=0.5)
  assert "v" not in settings.unused(config)
  assert settings.unused(config)["v_from"] == "model.learn_sigma"
  config.model.learn_sigma = True
  assert settings.unused(config)["v"] == "sampling.v_from"
  assert "v_from" not in settings.unused(config)
  config.sampling.v_from = "config"
  assert not {"v", "v_from"} & set(settings.unused(config))
  config.sampling.sampler = "ddim"
  assert {"v", "v_from"} <= set(settings.unused(config))


def test_what_is_not_known_is_taken_to_matter():
  config = at(sampler="mine", guidance="mine", threshold="mine", w=1.0)
  assert set(settings.unused(config)) == {"v_from"}  # sigma is not learned


def test_one_line_names_what_is_set_without_effect(monkeypatch):
  lines = []
  monkeypatch.setattr(
    settings.logging,
    "warning",
    lambda text, *arguments: lines.append(text % arguments),
  )
  settings.warn_of_unused(at(w=1.0, v=0.5))
  assert not lines
  settings.warn_of_unused(at(w=0.0, quantile=0.9, interval=(-2, 3)))
  assert lines == [
    "sampling.quantile=0.9 has no effect with sampling.threshold='clip'; "
    "sampling.interval=(-2, 3) has no effect with sampling.w=0.0."
  ]
  # A second network has to be there at w = 0, too.
  settings.warn_of_unused(at(guidance="auto", w=0.0, second_step=3))
  assert len(lines) == 1


def test_names_do_not_change_when_fields_are_added(set_defaults):
  before = settings.digest(settings.of_sampling(at(w=1.0)))
  set_defaults(sampling_spice=0.0)
  assert settings.digest(settings.of_sampling(at(w=1.0))) == before
  other = settings.of_sampling(at(w=1.0, spice=1.0))
  assert settings.digest(other) != before


def test_a_folder_of_other_defaults_is_refused(tmp_path, set_defaults):
  path = tmp_path / "settings.json"
  config = at(w=1.0)
  name = settings.digest(settings.of_sampling(config))
  settings.claim(path, settings.of_sampling(config), write=False)
  assert not path.exists()
  settings.claim(path, settings.of_sampling(config), write=True)
  assert json.loads(path.read_text())["sampling.v"] == 0.3

  set_defaults(sampling_v=0.2, sampling_spice=0.0)
  changed = settings.of_sampling(at(w=1.0))
  assert settings.digest(changed) == name
  with pytest.raises(
    errors.UserError, match=r"sampling\.v: 0\.3 there, 0\.2 now.*delete"
  ) as caught:
    settings.claim(path, changed, write=True)
  assert "\n" not in str(caught.value)
  settings.claim(path, settings.of_sampling(at(w=1.0, v=0.3)), write=True)


def test_an_interval_of_integers_is_that_of_floats():
  config = embedded.get_config()
  config.sampling.interval = (-1.0, 3.0)
  as_floats = settings.of_sampling(config)
  config.sampling.interval = (-1, 3)
  assert settings.digest(settings.of_sampling(config)) == settings.digest(
    as_floats
  )
