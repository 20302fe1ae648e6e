"""A config's fields, and which of them a run is known by."""

import importlib
import json
import pathlib
import shutil

import pytest

from cfgd import identity
from cfgd.runtime import errors
from cfgd.sweep import grid
from configs import adm_imagenet64_classifier
from configs import base
from configs import embedded
from configs import embedded_classifier
from configs import imagenet64
from configs import imagenet64_classifier
from configs import imagenet128
from configs import imagenet128_classifier
from configs import sweep_embedded
from configs import sweep_fashion_mnist
from configs import sweep_imagenet64
from configs import sweep_imagenet128

ALL = sorted(
  path.stem
  for path in pathlib.Path(base.__file__).parent.glob("*.py")
  if path.stem not in ("__init__", "claims")
)


@pytest.mark.parametrize("name", ALL)
def test_configs_have_the_same_fields(name):
  config = importlib.import_module(f"configs.{name}").get_config()

  def fields(plain):
    plain = identity.to_dict(plain)
    for name in ("grids", "classifier", "student", "figures"):
      del plain["sweep"][name]
    return set(identity.flatten(plain))

  assert fields(config) == fields(base.get_config())


def test_papers_values():
  small, large = imagenet64.get_config(), imagenet128.get_config()
  assert (small.train.batch_size, large.train.batch_size) == (2048, 256)
  assert (small.train.steps, large.train.steps) == (400_000, 2_700_000)
  assert (small.optim.learning_rate, large.optim.learning_rate) == (3e-4, 1e-4)
  assert (small.sampling.v, large.sampling.v) == (0.3, 0.2)
  assert (small.model.dropout, large.model.dropout) == (0.1, 0.0)
  assert small.sweep.grids.main.p_uncond == (0.1, 0.2, 0.5)
  assert large.sweep.grids.main.T == (128, 256, 1024)
  for config in (small, large):
    assert config.optim.ema_decay == 0.9999
    assert config.sampling.num_samples == 50_000
    assert (config.diffusion.logsnr_min, config.diffusion.logsnr_max) == (
      *(-20, 20),
    )


# Dhariwal & Nichol (arXiv:2105.05233), Table 12, and the commands of
# guided-diffusion's README: the rate falls to 0 in a line.
_CLASSIFIERS = {
  imagenet64_classifier: {
    "model.model_channels": 128,
    "model.num_res_blocks": 4,
    "model.channel_mult": (1, 2, 3, 4),
    "model.num_head_channels": 64,
    "model.attention_resolutions": (32, 16, 8),
    "model.dropout": 0.0,
    "optim.weight_decay": 0.2,
    "optim.learning_rate": 6e-4,
    "optim.decay": "linear",
    "optim.decay_steps": 300_000,
    "optim.warmup_steps": 0,
    "train.batch_size": 1024,
    "train.steps": 300_000,
  },
  imagenet128_classifier: {
    "model.model_channels": 128,
    "model.num_res_blocks": 2,
    "model.channel_mult": (1, 1, 2, 3, 4),
    "model.num_head_channels": 64,
    "model.attention_resolutions": (32, 16, 8),
    "model.dropout": 0.0,
    "optim.weight_decay": 0.05,
    "optim.learning_rate": 3e-4,
    "optim.decay": "linear",
    "optim.decay_steps": 300_000,
    "optim.warmup_steps": 0,
    "train.batch_size": 256,
    "train.steps": 300_000,
  },
}


@pytest.mark.parametrize("module", [sweep_imagenet64, sweep_imagenet128])
def test_fast_forms_are_the_papers_cells_in_few_evaluations(module):
  paper, fast = module.get_config(), module.get_config("fast")
  assert identity.of_model(fast) == identity.of_model(paper)
  assert fast.sampling.sampler == "sde_dpmpp_2m"
  assert not fast.sweep.paper  # whose numbers are Algorithm 2's
  plans = [
    grid.cells(config.sweep.grids, config.sampling) for config in (paper, fast)
  ]
  points = [{(c.p_uncond, c.w, c.fields) for c in cells} for cells in plans]
  assert points[0] == points[1]
  assert {cell.T for cell in plans[1]} == {12}
  for form in ("quick", ""):
    with pytest.raises(ValueError, match=f"'{form}' must be :paper or :fast"):
      module.get_config(form)


def test_the_full_form_of_the_demo_has_the_other_axes():
  demo, full = (sweep_embedded.get_config(k) for k in ("demo", "full"))
  few, all_of_them = (
    grid.cells(config.sweep.grids, config.sampling) for config in (demo, full)
  )
  assert {(cell.p_uncond, cell.T) for cell in few} == {(0.1, 12)}
  assert {cell.p_uncond for cell in all_of_them} == {0.1, 0.5}
  assert {cell.T for cell in all_of_them} == {8, 12, 16, 32}


_SWEEPS = {
  imagenet64_classifier: sweep_imagenet64,
  imagenet128_classifier: sweep_imagenet128,
}


@pytest.mark.parametrize("module", _CLASSIFIERS)
def test_adms_classifier_recipes(module):
  swept = grid.classifier_config(_SWEEPS[module].get_config())
  for config in (module.get_config(), swept):
    assert config.task == "classifier"
    for field, desired in _CLASSIFIERS[module].items():
      section, name = field.split(".")
      assert config[section][name] == desired, field


def test_other_classifiers_keep_their_own_recipes():
  fashion = grid.classifier_config(sweep_fashion_mnist.get_config("cpu"))
  recipes = [
    (config.optim.learning_rate, config.optim.weight_decay, config.train.steps)
    for config in (
      embedded_classifier.get_config(),
      fashion,
      adm_imagenet64_classifier.get_config(),
    )
  ]
  assert recipes == [
    (1e-3, 0.05, 400),
    (1e-3, 0.05, 600),
    (3e-4, 0.05, 300_000),
  ]
  assert embedded_classifier.get_config().train.batch_size == 64
  assert adm_imagenet64_classifier.get_config().train.batch_size == 256


def test_workdir_belongs_to_its_config(tmp_path):
  config = embedded.get_config()
  identity.claim_workdir(config, tmp_path, write=True)
  before = (tmp_path / "config.json").read_text()

  config.sampling.w = 3.0
  config.train.steps = 10
  config.metrics.neighbours = 5
  identity.claim_workdir(config, tmp_path, write=True)

  config.model.model_channels = 64
  with pytest.raises(errors.UserError, match=r"model_channels: 32 there, 64"):
    identity.claim_workdir(config, tmp_path, write=True)
  assert (tmp_path / "config.json").read_text() == before


# Of tests/golden/run_config.json, as the code that wrote it computed it and
# wrote it into the checkpoints of that run.
RECORDED_DIGEST = "948b389b"


@pytest.fixture
def old_run(tmp_path):
  """Return the workdir of a run that was made before some fields were."""
  golden = pathlib.Path(__file__).parent / "golden" / "run_config.json"
  shutil.copy(golden, tmp_path / "config.json")
  return tmp_path


def test_a_run_of_before_stays_what_it_is(old_run):
  before = (old_run / "config.json").read_text()
  config = embedded.get_config()
  identity.claim_workdir(config, old_run, write=True)
  assert identity.model_digest(config, old_run) == RECORDED_DIGEST
  assert (old_run / "config.json").read_text() == before


def test_a_new_field_at_its_default_changes_no_run(old_run, set_defaults):
  set_defaults(data_tint=0.0, model_gate=(1, 2), sampling_spice="none")
  config = embedded.get_config()
  assert config.model.gate == (1, 2)
  identity.claim_workdir(config, old_run, write=False)
  assert identity.model_digest(config, old_run) == RECORDED_DIGEST

  config.sampling.spice = "much"
  identity.claim_workdir(config, old_run, write=False)
  config.data.tint = 0.5
  with pytest.raises(
    errors.UserError, match=r"data\.tint: 0\.0 there by default, 0\.5 now"
  ):
    identity.claim_workdir(config, old_run, write=False)


def test_a_changed_default_is_another_run(old_run, set_defaults):
  set_defaults(optim_b1=0.8)
  with pytest.raises(errors.UserError, match=r"b1: 0\.9 there, 0\.8 now"):
    identity.claim_workdir(embedded.get_config(), old_run, write=False)


def test_a_field_that_is_no_more_is_ignored(old_run, monkeypatch):
  path = old_run / "config.json"
  plain = json.loads(path.read_text())
  plain["model"]["gate"] = [1, 2]
  path.write_text(json.dumps(plain))
  warned = []
  monkeypatch.setattr(
    identity.logging, "warning", lambda *text: warned.append(text)
  )
  config = embedded.get_config()
  identity.claim_workdir(config, old_run, write=False)
  ((text, *arguments),) = warned
  assert "model.gate=[1, 2]" in text % tuple(arguments)
  # The checkpoints of that run have this digest.
  assert identity.model_digest(config, old_run) != RECORDED_DIGEST
  assert "gate" not in identity.from_dict(plain).model


def test_a_recorded_config_lacks_nothing(old_run, set_defaults):
  set_defaults(model_gate=(1, 2))
  config = identity.recorded_config(old_run)
  assert config.model.gate == (1, 2)
  assert config.model.channel_mult == (1, 2)
  assert config.optim.learning_rate == 2e-3


def test_a_broken_record_is_named(tmp_path):
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(errors.UserError, match=r"config\.json is not JSON"):
    identity.claim_workdir(embedded.get_config(), tmp_path, write=True)


def test_reading_does_not_claim(tmp_path):
  identity.claim_workdir(embedded.get_config(), tmp_path, write=False)
  assert not list(tmp_path.iterdir())


def test_digest_names_what_a_model_is():
  config = embedded.get_config()
  first = identity.digest(identity.of_model(config))
  config.sampling.w = 2.0
  assert identity.digest(identity.of_model(config)) == first
  config.diffusion.p_uncond = 0.2
  assert identity.digest(identity.of_model(config)) != first
