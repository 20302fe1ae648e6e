"""What a config must satisfy, and that a mistake is told in one line."""

import importlib
import math

import jax
import pytest

from cfgd import build
from cfgd import diffusion
from cfgd import validation
from cfgd.runtime import errors
from configs import adm_imagenet64
from configs import embedded
from tests import test_configs


@pytest.mark.parametrize("name", test_configs.ALL)
def test_configs_are_valid(name):
  config = importlib.import_module(f"configs.{name}").get_config()
  validation.validate(config, num_devices=8)


@pytest.mark.parametrize(
  ("field", "value", "words"),
  [
    ("sampling.w", -1.5, "at least -1"),
    ("sampling.w", float("nan"), "at least -1"),
    ("sampling.w", float("inf"), "at least -1"),
    ("sampling.T", 1, "at least 2"),
    ("sampling.v", 1.5, "[0, 1]"),
    ("sampling.v_from", "learned", "'own', 'config'"),
    ("sampling.labels", (3, 10), "0..9"),
    ("sampling.labels", (-1,), "0..9"),
    ("sampling.labels", ("a",), "integer"),
    ("sampling.sampler", "euler", "ancestral"),
    ("sampling.grid", "karras", "'uniform_u', 'logsnr', 'edm', 'adm'"),
    ("sampling.grid", "adm", "diffusion.timesteps must be adm_cosine"),
    ("sampling.rho", 0.5, "[1, 1000]"),
    ("sampling.churn", 1.0, "must be 0 where sampling.sampler='ancestral'"),
    ("sampling.churn", float("nan"), "at least 0"),
    ("sampling.weights", "both", "ema"),
    ("sampling.num_samples", 0, "at least 1"),
    ("sampling.checkpoint_step", -2, "-1 for the newest"),
    ("train.batch_size", 6, "divisible by the 4 devices"),
    ("train.batch_size", 0, "at least 1"),
    ("train.microbatches", 0, "at least 1"),
    ("train.microbatches", 5, "must divide the 16 images of each device"),
    ("train.steps", 0, "at least 1"),
    ("train.keep_first", -1, "at least 0"),
    ("train.watchdog_seconds", -1.0, "at least 0"),
    ("train.lease_seconds", 0.0, "at least 1"),
    ("optim.decay_steps", 10, "train.steps"),
    ("optim.learning_rate", 0.0, "above 0"),
    ("optim.clip_norm", -1.0, "0 for no clipping"),
    ("optim.clip_norm", float("inf"), "0 for no clipping"),
    ("optim.clip_norm", float("nan"), "0 for no clipping"),
    ("diffusion.p_uncond", 1.1, "[0, 1]"),
    ("diffusion.p_uncond", 0.0, "unconditional model"),
    ("diffusion.logsnr_min", 20.0, "below diffusion.logsnr_max"),
    ("data.image_size", 11, "divisible by 2"),
    ("data.crop", 8, "at least data.image_size"),
    ("data.background", "whitish", "opaque colour"),
    ("data.random_crop", 1.25, "in (0, 1]"),
    ("data.random_crop", -0.5, "in (0, 1]"),
    ("model.model_channels", 40, "32"),
    ("model.num_heads", 3, "divide"),
    ("model.attention_resolutions", (6,), "among the levels' pixels, 10, 5"),
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


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"grid": "logsnr", "logsnr_low": -21.0}, "logsnr_low=-21.0: must be with"),
    ({"grid": "edm", "logsnr_high": 21.0}, "logsnr_high=21.0: must be within"),
    (
      {"grid": "logsnr", "logsnr_low": 9.0},
      "logsnr_low=9.0: must be below sampling.logsnr_high=9.0",
    ),
    (
      {"sampler": "heun", "churn": 1.0, "churn_low": 6.0},
      "churn_low=6.0: must be below sampling.churn_high=6.0",
    ),
    ({"sampler": "dpmpp_2m", "noise_scale": 0.9}, "noise_scale=0.9: must be 1"),
  ],
)
def test_what_samplers_and_grids_need(fields, words):
  config = embedded.get_config()
  config.sampling.update(fields)
  with pytest.raises(errors.UserError, match=rf"^sampling\.{words}"):
    validation.validate(config, num_devices=1)


def test_the_grid_of_adm_has_a_thousand_levels():
  config = adm_imagenet64.get_config()
  config.sampling.T = 1000
  validation.validate(config, num_devices=1)
  config.sampling.T = 1001
  with pytest.raises(errors.UserError, match=r"T=1001: needs 1001 levels"):
    validation.validate(config, num_devices=1)


@pytest.mark.parametrize("sampler", diffusion.SAMPLERS)
def test_a_networks_own_v_is_used_or_refused_by_name(sampler):
  config = adm_imagenet64.get_config()
  row = diffusion.SAMPLERS[sampler]
  config.sampling.update({"sampler": sampler, "guide_dir": "somewhere"})
  if row.without_score:
    config.sampling.update({"guidance": "classifier", "w": 1.0})
  if not row.uses_v:
    with pytest.raises(errors.UserError, match=f"v_from='own'.*{sampler}"):
      validation.validate(config, num_devices=1)
    config.sampling.v_from = "config"
  validation.validate(config, num_devices=1)


def test_a_grid_may_say_that_samplers_do_without_the_networks_v():
  config = adm_imagenet64.get_config()
  axes = {"p_uncond": (0.0,), "T": (12,), "w": (0.0,)}
  config.sweep.grids.few = {
    **axes,
    "sampler": ("sde_dpmpp_2m", "ddim"),
    "v_from": ("config",),
  }
  validation.validate_grids(config)
  # Without noise v has no effect, whatever the sampler.
  config.sampling.noise_scale = 0.0
  del config.sweep.grids["few"]
  config.sweep.grids.idle = axes | {"v_from": ("own", "config")}
  with pytest.raises(errors.UserError, match="v_from='config': has no effect"):
    validation.validate_grids(config)


def test_a_value_of_an_axis_is_checked_by_the_rule_of_its_field():
  config = embedded.get_config()
  config.sweep.grids.main = {
    **{"p_uncond": (0.1,), "T": (4,), "w": (0.3,)},
    "sampler": ("ddim", "heun,"),
  }
  words = r"^sweep\.grids\.main\.sampler='heun,': must be one of"
  with pytest.raises(errors.UserError, match=words):
    validation.validate_grids(config)


@pytest.mark.parametrize("name", ["fashion_mnist", "sweep_fashion_mnist"])
@pytest.mark.parametrize("size", ["gpu", "cpu"])
def test_sizes_of_fashion_mnist(name, size):
  config = importlib.import_module(f"configs.{name}").get_config(size)
  validation.validate(config, num_devices=2)
  shapes = build.param_shapes(config)
  millions = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) / 1e6
  low, high = {"gpu": (7, 9), "cpu": (0.5, 1.5)}[size]
  assert low < millions < high


@pytest.mark.parametrize(
  ("field", "value", "words"),
  [
    ("seeds", (0, -1), "at least 0"),
    ("seeds", (0, 0), "each seed once"),
    ("seeds", (0.5,), "must be an integer"),
    ("claims.confidence", 1.0, "above 0 and below 1"),
    ("claims.alike", 0.9, "above 1"),
    ("claims.copied_epochs", 0.0, "above 0"),
  ],
)
def test_bad_seeds_and_limits_are_refused(field, value, words):
  config = embedded.get_config()
  with config.ignore_type():
    config.update_from_flattened_dict({f"sweep.{field}": value})
  with pytest.raises(errors.UserError, match=rf"sweep\.{field}=.*{words}"):
    validation.validate_grids(config)


@pytest.mark.parametrize(
  ("field", "words"),
  [
    ("second_dir", r"no such field; use sampling\.guide_dir"),
    ("second_step", r"no such field; use sampling\.guide_step"),
    ("classifier_form", "sampler='ancestral_mean_shift'"),
  ],
)
def test_fields_that_are_no_more_are_refused(field, words):
  config = embedded.get_config()
  config.sampling[field] = "x"
  with pytest.raises(
    errors.UserError, match=rf"^sampling\.{field}='x': .*{words}"
  ):
    validation.validate(config, num_devices=1)
  del config.sampling[field]
  config.sweep.grids.main[field] = ("x",)
  with pytest.raises(errors.UserError, match=rf"main\.{field}="):
    validation.validate_grids(config)


def test_fields_of_ones_own_are_no_mistake():
  config = embedded.get_config()
  config.data.where_from = "a friend"
  config.train.lease_seconds = float("inf")
  validation.validate(config, num_devices=1)


def test_seeds_are_no_axis():
  config = embedded.get_config()
  config.sweep.grids.main["seed"] = (0, 1)
  with pytest.raises(errors.UserError, match=r"main\.seed=.*use sweep\.seeds"):
    validation.validate_grids(config)
