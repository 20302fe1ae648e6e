"""What a config must satisfy, and that a mistake is told in one line."""

import importlib
import math
import pathlib

import jax
import pytest

from cfgd import config as config_lib
from cfgd import errors
from cfgd import networks
from cfgd import validation
from configs import base
from configs import embedded
from configs import imagenet64
from configs import imagenet128

ALL = sorted(
  path.stem
  for path in pathlib.Path(base.__file__).parent.glob("*.py")
  if path.stem != "__init__"
)


@pytest.mark.parametrize("name", ALL)
def test_configs_validate_and_have_the_same_fields(name):
  config = importlib.import_module(f"configs.{name}").get_config()
  validation.validate(config, num_devices=8)

  def fields(plain):
    plain = config_lib.to_dict(plain)
    for name in ("grids", "classifier", "figures"):
      del plain["sweep"][name]
    return set(config_lib._flatten(plain))

  assert fields(config) == fields(base.get_config())


@pytest.mark.parametrize("name", ["fashion_mnist", "sweep_fashion_mnist"])
@pytest.mark.parametrize("size", ["gpu", "cpu", "fast"])
def test_sizes_of_fashion_mnist(name, size):
  config = importlib.import_module(f"configs.{name}").get_config(size)
  validation.validate(config, num_devices=2)
  shapes = networks.param_shapes(config)
  millions = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) / 1e6
  low, high = {"gpu": (20, 40)}.get(size, (0.5, 1.5))
  assert low < millions < high


@pytest.mark.parametrize(
  ("field", "value", "words"),
  [
    ("seeds", (0, -1), "not be below 0"),
    ("seeds", (0, 0), "each seed once"),
    ("seeds", (0.5,), "must be an integer"),
    ("claims.confidence", 1.0, "above 0 and below 1"),
    ("claims.alike", 0.9, "above 1"),
  ],
)
def test_bad_seeds_and_limits_are_refused(field, value, words):
  config = embedded.get_config()
  with config.ignore_type():
    config.update_from_flattened_dict({f"sweep.{field}": value})
  with pytest.raises(errors.UserError, match=rf"sweep\.{field}=.*{words}"):
    validation.validate_grids(config)


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


@pytest.mark.parametrize(
  ("field", "value", "words"),
  [
    ("sampling.w", -1.5, "at least -1"),
    ("sampling.w", float("nan"), "at least -1"),
    ("sampling.w", float("inf"), "at least -1"),
    ("sampling.T", 1, "at least 2"),
    ("sampling.v", 1.5, "[0, 1]"),
    ("sampling.labels", (3, 10), "0..9"),
    ("sampling.labels", (-1,), "0..9"),
    ("sampling.labels", ("a",), "integer"),
    ("sampling.sampler", "euler", "ancestral"),
    ("sampling.weights", "both", "ema"),
    ("sampling.num_samples", 0, "at least 1"),
    ("sampling.checkpoint_step", -2, "-1 for the newest"),
    ("train.batch_size", 6, "divisible by the 4 devices"),
    ("train.batch_size", 0, "at least 1"),
    ("train.steps", 0, "at least 1"),
    ("train.keep_first", -1, "not be below 0"),
    ("train.watchdog_seconds", -1.0, "not be below 0"),
    ("train.lease_seconds", 0.0, "at least 1"),
    ("optim.decay_steps", 10, "train.steps"),
    ("optim.learning_rate", 0.0, "above 0"),
    ("diffusion.p_uncond", 1.1, "[0, 1]"),
    ("diffusion.p_uncond", 0.0, "unconditional model"),
    ("diffusion.logsnr_min", 20.0, "below diffusion.logsnr_max"),
    ("data.image_size", 11, "divisible by 2"),
    ("data.crop", 8, "at least data.image_size"),
    ("model.model_channels", 40, "32"),
    ("model.num_heads", 3, "divide"),
    ("model.attention_resolutions", (6,), "levels have"),
    ("model.dtype", "float16", "bfloat16"),
    ("model.dropout", 1.0, "[0, 1)"),
    ("model.channel_mult", (), "empty"),
    ("model.channel_mult", ("x",), "number"),
  ],
)
def test_mistakes_name_field_value_and_choice(field, value, words):
  config = embedded.get_config()
  section, name = field.split(".")
  with config.ignore_type():
    config[section][name] = value
  with pytest.raises(errors.UserError) as caught:
    validation.validate(config, num_devices=4)
  message = str(caught.value)
  assert words in message
  assert "\n" not in message
  # All but the rule on w, which p_uncond = 0 breaks, name the field set.
  assert field in message or "diffusion.p_uncond=0" in message


def test_unconditional_w_and_conditional_only_models_are_allowed():
  config = embedded.get_config()
  config.sampling.w = -1.0
  validation.validate(config, num_devices=1)
  config.sampling.w = 0.0
  config.diffusion.p_uncond = 0.0
  validation.validate(config, num_devices=1)


def test_workdir_belongs_to_its_config(tmp_path):
  config = embedded.get_config()
  config_lib.claim_workdir(config, tmp_path, write=True)
  before = (tmp_path / "config.json").read_text()

  config.sampling.w = 3.0
  config.train.steps = 10
  config.metrics.neighbours = 5
  config_lib.claim_workdir(config, tmp_path, write=True)

  config.model.model_channels = 64
  with pytest.raises(errors.UserError, match=r"model_channels: 32 there, 64"):
    config_lib.claim_workdir(config, tmp_path, write=True)
  assert (tmp_path / "config.json").read_text() == before


def test_a_broken_record_is_named(tmp_path):
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(errors.UserError, match=r"config\.json is not JSON"):
    config_lib.claim_workdir(embedded.get_config(), tmp_path, write=True)


def test_reading_does_not_claim(tmp_path):
  config_lib.claim_workdir(embedded.get_config(), tmp_path, write=False)
  assert not list(tmp_path.iterdir())


def test_digest_names_what_a_model_is():
  config = embedded.get_config()
  first = config_lib.digest(config_lib.identity(config))
  config.sampling.w = 2.0
  assert config_lib.digest(config_lib.identity(config)) == first
  config.diffusion.p_uncond = 0.2
  assert config_lib.digest(config_lib.identity(config)) != first
