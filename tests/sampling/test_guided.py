"""Every guidance through the compiled sampler, and networks that do not fit."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgd import build
from cfgd import identity
from cfgd import methods
from cfgd import validation
from cfgd.runtime import checkpoint
from cfgd.runtime import errors
from cfgd.sampling import generate
from cfgd.sampling import trained as trained_lib
from cfgd.training import state as state_lib
from configs import imagenet64_classifier
from tests import conftest
from tests.models import golden_weights
from tests.sampling import test_sampling as common

KINDS = [kind for kind in methods.METHODS if kind != "none"]


class Judge:
  """A classifier of one number that likes bright images of high classes."""

  def apply(self, variables, z, time):
    classes = jnp.arange(10.0) / 10
    return variables["params"] * z.mean(axis=(1, 2, 3))[:, None] * classes


class Blurred(common.Scaled):
  """A weaker model."""

  def apply(self, variables, z, time, label):
    return 0.2 * super().apply(variables, z, time, label)


class Taught(common.Scaled):
  """A student that takes w."""

  takes_w = True

  def apply(self, variables, z, time, label, w=None):
    w = 0.0 if w is None else w[:, None, None, None]
    return (1 + 0.1 * w) * super().apply(variables, z, time, label)


# The same instances, so that equal samplers are compiled once.
MODEL, WEAK, JUDGE = common.Scaled(), Blurred(), Judge()
TAUGHT = Taught()


def make(kind, **changes):
  guide = {"classifier": JUDGE, "diffusion": WEAK}
  network = guide.get(methods.METHODS[kind].guide)
  model = TAUGHT if kind == "distilled" else MODEL
  return common.make(model, network, guidance=kind, **changes)


@pytest.fixture(scope="module")
def unguided():
  return common.draw(make("none"), range(8))


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_of_no_strength_is_the_conditional_model(kind, unguided):
  run = make(kind)
  neutral = -1.0 if kind == "classifier_null" else 0.0
  images = common.draw(run, range(8), w=neutral, classifier_w=0.0)
  if kind == "classifier_null":  # w + 1 = 0: the unconditional model
    assert (images != unguided).any()
    null = common.draw(make("cfg"), range(8), w=-1.0)
    np.testing.assert_allclose(images.astype(int), null.astype(int), atol=1)
  else:
    np.testing.assert_array_equal(images, unguided)
  assert (common.draw(run, range(8), w=3.0) != images).any()


@pytest.mark.parametrize(
  "kind", ["cfg", "auto", "classifier", "cfg+classifier"]
)
def test_an_interval_guides_inside_alone(kind, unguided):
  run = make(kind)
  guided = common.draw(run, range(8), w=3.0)
  around = common.draw(
    run, range(8), w=3.0, interval_low=-25.0, interval_high=25.0
  )
  np.testing.assert_array_equal(around, guided)
  nowhere = common.draw(
    run, range(8), w=3.0, interval_low=5.0, interval_high=6.0
  )
  np.testing.assert_array_equal(nowhere, unguided)


@pytest.mark.parametrize(
  ("schedule", "interval"),
  [("linear", (-np.inf, np.inf)), ("constant", (-25.0, 5.0))],
)
def test_both_strengths_follow_schedule_and_interval(schedule, interval):
  low, high = interval
  numbers = {"interval_low": low, "interval_high": high}
  both = make("cfg+classifier", w_schedule=schedule)
  for kind, w, classifier_w in (("classifier", 0.0, 2.0), ("cfg", 2.0, 0.0)):
    alone = common.draw(
      make(kind, w_schedule=schedule), range(8), w=2.0, **numbers
    )
    images = common.draw(
      both, range(8), w=w, classifier_w=classifier_w, **numbers
    )
    np.testing.assert_array_equal(images, alone)


@pytest.mark.parametrize(
  ("change", "numbers"),
  [
    ({"w_schedule": "linear"}, {}),
    ({"w_schedule": "cosine"}, {}),
    ({"rescale": True}, {}),
    ({"threshold": "dynamic"}, {}),
    ({"threshold": "none"}, {}),
    ({}, {"score_scale": 1.5}),
    ({}, {"noise_scale": 0.5}),
  ],
)
def test_every_setting_changes_the_images(change, numbers):
  plain = common.draw(make("cfg"), range(8), w=2.0)
  changed = common.draw(make("cfg", **change), range(8), w=2.0, **numbers)
  assert (changed != plain).any()


def test_the_classes_mean_stands_in_for_the_null_label():
  """With a classifier that cannot tell, it is the plain mean."""

  class Shades(common.Scaled):
    def apply(self, variables, z, time, label):
      return z * (label[:, None, None, None] / 10)

  class Blind:
    def apply(self, variables, z, time):
      return jnp.zeros((z.shape[0], 3))

  class Mean:
    condition, takes_w = "all", False

    def apply(self, variables, z, time, label):
      return z * 0.1  # of 0, 0.1 and 0.2

  model = Shades()
  marginal = common.make(model, Blind(), guidance="marginal")
  auto = common.make(model, Mean(), guidance="auto")
  np.testing.assert_allclose(
    common.draw(marginal, range(8), w=2.0).astype(int),
    common.draw(auto, range(8), w=2.0).astype(int),
    atol=1,
  )


def test_the_mean_shift_moves_with_the_classifier(unguided):
  run = make("classifier", sampler="ancestral_mean_shift")
  np.testing.assert_array_equal(common.draw(run, range(8), w=0.0), unguided)
  assert (common.draw(run, range(8), w=3.0) != unguided).any()
  null = make("classifier_null", sampler="ancestral_mean_shift")
  np.testing.assert_allclose(
    common.draw(null, range(8), w=-1.0).astype(int),
    common.draw(make("cfg"), range(8), w=-1.0).astype(int),
    atol=1,
  )


def classifier_config():
  config = imagenet64_classifier.as_classifier(
    conftest.make_tiny(), num_res_blocks=1
  )
  config.model.model_channels = config.model.num_head_channels = 32
  config.optim.decay_steps = 0
  return config


def save(config, workdir, steps):
  """Write checkpoints of random parameters as if they had been trained."""
  identity.claim_workdir(config, workdir, write=True)
  params, _ = golden_weights.fill(build.param_shapes(config))
  optimizer = build.optimizer(config)
  state = state_lib.create(params, optimizer)
  checkpoints = checkpoint.Checkpointer(workdir, keep=3, keep_every=0)
  for step in steps:
    checkpoints.save(state.replace(step=np.int32(step)), {})
    weaker = jax.tree.map(lambda leaf: 0.9 * leaf, state.ema_params)
    state = state.replace(ema_params=weaker)
  checkpoints.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Return (config, model's workdir, classifier's workdir)."""
  folder = tmp_path_factory.mktemp("guided")
  config = conftest.make_tiny()
  save(config, folder / "model", (1, 2))
  save(classifier_config(), folder / "classifier", (1,))
  return config, folder / "model", folder / "classifier"


def images_of(path):
  with np.load(path) as arrays:
    return arrays["arr_0"]


def test_generate_guides_by_a_trained_classifier(trained):
  config, workdir, classifier = trained
  config = config.copy_and_resolve_references()
  config.sampling.guidance = "classifier"
  config.sampling.guide_dir = str(classifier)
  paths = []
  for w in (0.0, 20.0):
    config.sampling.w = w
    paths.append(generate.generate(config, workdir))
  plain, guided = map(images_of, paths)
  assert (plain != guided).any()
  shutil.rmtree(paths[0].parent)
  config.sampling.guidance = "none"
  config.sampling.w = 0.0
  assert generate.generate(config, workdir) == paths[0]
  np.testing.assert_array_equal(images_of(paths[0]), plain)


def test_an_older_guiding_network_has_the_default_of_a_new_field(
  trained, set_defaults
):
  config, workdir, classifier = trained
  config = config.copy_and_resolve_references()
  config.sampling.guidance = "classifier"
  config.sampling.guide_dir = str(classifier)
  before = identity.claim_samples(
    *trained_lib.find(config, workdir), write=False
  )
  set_defaults(model_gate=0)
  with config.unlocked():
    config.model.gate = 1
  model, guide = trained_lib.find(config, workdir)
  assert guide.config.model.gate == 0
  config.model.gate = 0
  assert identity.claim_samples(model, guide, write=False) == before


def test_generate_guides_away_from_an_earlier_checkpoint(trained):
  config, workdir, _ = trained
  config = config.copy_and_resolve_references()
  config.sampling.guidance = "auto"
  config.sampling.guide_step = 1
  config.sampling.w = 1.0
  path = generate.generate(config, workdir)
  assert "_auto_" in path.parent.name
  assert len(images_of(path)) == 22


@pytest.mark.parametrize(
  ("field", "value", "words"),
  [
    ("data.num_classes", 9, r"data\.num_classes=10, the model with 9"),
    ("data.image_size", 8, r"data\.image_size=4, the model with 8"),
    ("diffusion.logsnr_max", 15.0, r"logsnr_max=20\.0, the model with 15\.0"),
    ("diffusion.timesteps", "adm_cosine", r"timesteps='uniform', the model"),
  ],
)
def test_a_classifier_of_something_else_is_refused(
  trained, tmp_path, monkeypatch, field, value, words
):
  """Before anything is compiled or written."""
  config, _, classifier = trained
  config = config.copy_and_resolve_references()
  section, name = field.split(".")
  config[section][name] = value
  config.model.attention_resolutions = ()
  config.sampling.guidance = "classifier"
  config.sampling.guide_dir = str(classifier)
  (tmp_path / "checkpoints/1").mkdir(parents=True)
  monkeypatch.setattr(trained_lib.checkpoint, "find_step", lambda *a, **k: 1)
  with pytest.raises(errors.UserError, match=f"{classifier}.*{words}"):
    generate.generate(config, tmp_path)


def test_guidance_by_what_is_no_classifier_is_refused(trained, tmp_path):
  config, workdir, classifier = trained
  config = config.copy_and_resolve_references()
  config.sampling.guidance = "classifier"
  config.sampling.guide_dir = str(workdir)
  with pytest.raises(
    errors.UserError, match=r"a diffusion network.*needs a cl"
  ):
    generate.generate(config, workdir)
  config.sampling.guide_dir = str(tmp_path)
  with pytest.raises(errors.UserError, match=r"config\.json: no such file"):
    generate.generate(config, workdir)
  config.sampling.guidance = "auto"
  config.sampling.guide_dir = str(classifier)
  with pytest.raises(errors.UserError, match="a classifier network"):
    generate.generate(config, workdir)


def test_the_mean_of_many_classes_is_refused(tiny):
  tiny.sampling.guidance = "marginal"
  tiny.sampling.guide_dir = "x"
  tiny.data.num_classes = 100
  validation.validate(tiny, num_devices=1)
  tiny.data.num_classes = 101
  with pytest.raises(errors.UserError) as caught:
    validation.validate(tiny, num_devices=1)
  message = str(caught.value)
  for words in (
    "sampling.guidance='marginal'",
    "at most 100",
    "=101",
    "a null label",
  ):
    assert words in message
  assert "\n" not in message


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"guidance": "both"}, "must be one of"),
    ({"guidance": "none"}, r"sampling\.w=0\.3: must be 0"),
    ({"guidance": "classifier"}, "workdir of a noisy classifier"),
    ({"guidance": "auto"}, r"guide_step=-1: must be an earlier"),
    ({"interval": (1.0,)}, "two log-SNRs"),
    ({"interval": (2.0, 1.0)}, "the lower first"),
    ({"rescale": 1.5}, r"must be in \[0, 1\]"),
    (
      {"rescale": 0.5, "guidance": "classifier", "guide_dir": "x"},
      "has no second eps",
    ),
    ({"sampler": "ancestral_mean_shift"}, "needs guidance by a classifier"),
    ({"sampler": "ddim", "noise_scale": 0.5}, "noise_scale=0.5: must be 1"),
    ({"score_scale": -1.0}, "at least 0"),
    ({"noise_scale": float("nan")}, "at least 0"),
  ],
)
def test_settings_that_do_not_go_together_are_refused(tiny, fields, words):
  tiny.sampling.w = 0.3
  for name, value in fields.items():
    tiny.sampling[name] = value
  with pytest.raises(errors.UserError, match=words):
    validation.validate(tiny, num_devices=1)
