"""Guided students: real short trainings, and teachers that do not fit."""

import functools
import json
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cfgd import build
from cfgd import diffusion
from cfgd import guidance
from cfgd import identity
from cfgd.models import parametrization
from cfgd.paper import toy
from cfgd.runtime import checkpoint
from cfgd.runtime import errors
from cfgd.sampling import generate
from cfgd.training import loop
from cfgd.training import teacher
from tests import conftest
from tests.models import networks
from tests.training import test_loop

answering_signals = test_loop.answering_signals

# Steps until the networks see labels and w.
STEPS = 8
LONG = {"train.steps": STEPS, "train.checkpoint_every": STEPS}


def make_teacher(**changes):
  config = conftest.make_tiny()
  config.update_from_flattened_dict(changes)
  return config


def make_student(folder, **changes):
  config = conftest.make_tiny()
  config.task = "guided_student"
  config.diffusion.p_uncond = 0.0
  config.distill.teacher = str(folder)
  config.sampling.guidance = "distilled"
  config.update_from_flattened_dict(changes)
  return config


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
  """Return folders of a teacher and of its student, both trained."""
  folder = tmp_path_factory.mktemp("taught")
  loop.train(make_teacher(**LONG), folder / "teacher")
  loop.train(make_student(folder / "teacher", **LONG), folder / "student")
  return folder / "teacher", folder / "student"


def test_a_student_starts_as_its_teacher(taught):
  config = teacher.resolved(make_student(taught[0]), taught[1])
  params = teacher.student_params(config, build.initial_params(config))
  theirs = teacher.params(config)
  z = np.random.default_rng(0).standard_normal((4, 4, 4, 1), np.float32)
  inputs = z, jnp.linspace(-9.0, 9.0, 4), jnp.array([0, 3, 9, 10])
  model = build.model(build.teacher_config(config))
  desired = model.denoiser(theirs)(*inputs).eps
  assert jnp.abs(desired).max() > 0
  for w in (None, jnp.zeros(4), jnp.linspace(0.0, 4.0, 4)):
    eps = build.model(config).denoiser(params, w=w)(*inputs).eps
    np.testing.assert_allclose(eps, desired, atol=1e-6)


def test_a_student_learns_and_its_teacher_stays(taught):
  before = checkpoint.read_params(
    taught[0], STEPS, build.param_shapes(make_teacher()), "raw"
  )
  config = make_student(taught[0])
  after = test_loop.final(config, taught[1]).params
  ours = {name: after[name] for name in before}
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, ours)
  assert any(jax.tree.leaves(moved))
  again = checkpoint.read_params(
    taught[0], STEPS, build.param_shapes(make_teacher()), "raw"
  )
  test_loop.assert_equal(before, again)
  assert set(after) - set(before) == {"w_embed_0", "w_embed_2"}


def test_resume_equals_the_straight_run_bit_for_bit(
  taught, tmp_path, monkeypatch, answering_signals
):
  config = make_student(taught[0])
  config.train.steps = 4
  loop.train(config, tmp_path / "straight")
  config.train.checkpoint_every = 4
  with monkeypatch.context() as patched:
    test_loop.signal_at(patched, signal.SIGTERM, 2)
    with pytest.raises(errors.Preempted):
      loop.train(config, tmp_path / "resumed")
  loop.train(config, tmp_path / "resumed")
  one, other = (
    test_loop.final(config, tmp_path / name) for name in ("straight", "resumed")
  )
  test_loop.assert_equal(one, other)


def test_a_student_is_named_by_its_teacher(taught, tmp_path):
  record = json.loads((taught[1] / "config.json").read_text())
  digest = identity.model_digest(make_teacher(), taught[0])
  assert record["distill"]["teacher_model"] == digest
  assert record["distill"]["teacher_step"] == STEPS
  other = make_teacher(seed=1)
  loop.train(other, tmp_path / "other")
  # Wherever the teacher is; but no other teacher.
  shutil.copytree(taught[0], tmp_path / "moved")
  loop.train(make_student(tmp_path / "moved", **LONG), taught[1])
  with pytest.raises(errors.UserError, match=r"the teacher of .*student is "):
    loop.train(make_student(tmp_path / "other"), taught[1])


def test_a_student_keeps_the_checkpoint_that_it_began_with(taught, tmp_path):
  shutil.copytree(taught[0], tmp_path / "teacher")
  shutil.copytree(taught[1], tmp_path / "student")
  longer = make_teacher()
  longer.train.steps = STEPS + 1
  loop.train(longer, tmp_path / "teacher")
  assert checkpoint.steps(tmp_path / "teacher")[-1] == STEPS + 1
  config = make_student(tmp_path / "teacher")
  config.train.steps = STEPS + 1
  loop.train(config, tmp_path / "student")
  found = teacher.resolved(config, tmp_path / "student")
  assert found.distill.teacher_step == STEPS


def test_a_student_says_that_its_teachers_checkpoint_is_gone(taught, tmp_path):
  shutil.copytree(taught[0], tmp_path / "teacher")
  shutil.copytree(taught[1], tmp_path / "student")
  longer = make_teacher()
  longer.train.update({"steps": STEPS + 2, "keep": 1})
  loop.train(longer, tmp_path / "teacher")
  assert STEPS not in checkpoint.steps(tmp_path / "teacher")
  config = make_student(tmp_path / "teacher")
  config.train.steps = STEPS + 1
  with pytest.raises(errors.UserError, match=f"its checkpoint {STEPS}, which"):
    loop.train(config, tmp_path / "student")


def test_a_trained_student_needs_no_teacher(taught, tmp_path):
  shutil.copytree(taught[1], tmp_path / "student")
  config = make_student(tmp_path / "gone", **LONG)
  loop.train(config, tmp_path / "student")
  config.train.steps = STEPS + 1
  with pytest.raises(errors.UserError, match=r"config.json: no such file"):
    loop.train(config, tmp_path / "student")


@pytest.mark.parametrize(
  ("task", "condition", "message"),
  [
    ("guided_student", "all", "task='diffusion': the weights in"),
    ("diffusion", "decoder", "model.condition='all': the weights in"),
  ],
)
def test_weights_of_another_kind_start_nothing(
  taught, tmp_path, task, condition, message
):
  shutil.copytree(taught[0], tmp_path / "origin")
  record = json.loads((tmp_path / "origin" / "config.json").read_text())
  record["task"], record["model"]["condition"] = task, condition
  (tmp_path / "origin" / "config.json").write_text(json.dumps(record))
  config = make_teacher()
  config.train.init_from = str(tmp_path / "origin")
  with pytest.raises(errors.UserError, match=message):
    loop.train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("theirs", "ours", "message"),
  [
    ({}, {"distill.teacher": ""}, "distill.teacher='': must be the workdir"),
    ({"model.model_channels": 64}, {}, "model.model_channels=64, the student"),
    ({"model.condition": "decoder"}, {}, "model.condition='decoder', the"),
    ({"diffusion.p_uncond": 0.0, "sampling.w": 0.0}, {}, "p_uncond=0: a teach"),
    (
      {"diffusion.logsnr_max": 15.0},
      {},
      "diffusion.logsnr_max=15.0, the model",
    ),
    ({}, {"distill.teacher_step": 7}, "distill.teacher_step=7"),
    ({}, {"distill.teacher_model": "0123abcd"}, "is 0123abcd"),
    ({}, {"distill.w_low": 4.0}, "distill.w_low=4.0: must be below"),
    ({}, {"distill.w_high": float("inf")}, "distill.w_high=inf: must be a"),
    (
      {},
      {"distill.w_low": 0.5, "sampling.guidance": "none", "sampling.w": 0.0},
      "gives the student w from 0 to 0",
    ),
    ({}, {"diffusion.p_uncond": 0.1}, "it drops no labels"),
  ],
)
def test_teachers_that_do_not_fit(taught, tmp_path, theirs, ours, message):
  shutil.copytree(taught[0], tmp_path / "teacher")
  record = json.loads((tmp_path / "teacher" / "config.json").read_text())
  for field, value in theirs.items():
    section, name = field.split(".")
    record[section][name] = value
  (tmp_path / "teacher" / "config.json").write_text(json.dumps(record))
  config = make_student(tmp_path / "teacher", **ours)
  with pytest.raises(errors.UserError, match=re.escape(message)):
    loop.train(config, tmp_path / "student")
  assert not (tmp_path / "student").exists()


def test_no_workdir_and_no_diffusion_model_is_a_teacher(taught, tmp_path):
  with pytest.raises(errors.UserError, match=r"config.json: no such file"):
    loop.train(make_student(tmp_path / "none"), tmp_path / "student")
  with pytest.raises(errors.UserError, match="a guided_student network; a tea"):
    loop.train(make_student(taught[1]), tmp_path / "student")


def test_samples_of_a_student(taught):
  config = make_student(taught[0])
  config.distill.teacher = ""  # not needed any more
  paths = {}
  for w in (0.0, 1.0, 4.0):
    config.sampling.w = w
    paths[w] = generate.generate(config, taught[1])
  images = {w: np.load(path)["arr_0"] for w, path in paths.items()}
  assert (images[0.0] != images[4.0]).any()
  # At w = 0 it is the conditional model: the same folder, even.
  config.sampling.update({"w": 0.0, "guidance": "none"})
  assert generate.generate(config, taught[1]) == paths[0.0]
  for fields, message in (
    ({"w": 4.5}, "w from 4.5 to 4.5, and it was trained for"),
    ({"w": -0.5}, "w from -0.5 to -0.5"),
    ({"w": 2.5, "w_schedule": "linear"}, "w from 0 to 5"),
    ({"guidance": "cfg"}, "does not sample task='guided_student'"),
    ({"rescale": 0.5}, "has no second eps"),
  ):
    wrong = config.copy_and_resolve_references()
    wrong.sampling.update({"w": 1.0, "guidance": "distilled"} | fields)
    with pytest.raises(errors.UserError, match=message):
      generate.generate(wrong, taught[1])


def test_a_model_without_w_is_not_distilled(taught):
  config = make_teacher()
  config.sampling.guidance = "distilled"
  with pytest.raises(
    errors.UserError, match="does not sample task='diffusion'"
  ):
    generate.generate(config, taught[0])


# The loss, with a teacher whose guided eps is known: class c is a Gaussian.

_MIXTURE = toy.Mixture(
  means=np.array([[0.6, -0.2, 0.4, 0.0] * 4, [-0.5, 0.5, 0.0, -0.6] * 4]),
  stds=np.array([0.4, 0.7]),
  weights=np.array([0.5, 0.5]),
)
_SCHEDULE = diffusion.Schedule(-10.0, 10.0)


def exact(w):
  return diffusion.classifier_free_guidance(
    toy.denoiser(_MIXTURE), w, null_label=2, two_passes=False
  )


def draw(key, number):
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(number))
  label = jnp.arange(number) % 2
  means, stds = jnp.float32(_MIXTURE.means), jnp.float32(_MIXTURE.stds)
  noise = diffusion.normal(diffusion.fold_in(keys, 9), (16,))
  x = means[label] + stds[label][:, None] * noise
  return keys, x.reshape(number, 4, 4, 1), label


def distillation_loss(student, keys, x, label, low=0.0, high=4.0):
  return guidance.distillation_loss(
    *(student, toy.denoiser(_MIXTURE), keys, x, label),
    **{"w_low": low, "w_high": high, "null_label": 2, "schedule": _SCHEDULE},
  )


def test_the_loss_is_the_error_of_the_guided_eps():
  keys, x, label = draw(jax.random.key(0), 2000)
  seen = []

  def off_by(shift):
    def student(w):
      seen.append(np.asarray(w))

      def denoise(z, logsnr, label):
        eps = exact(w)(z, logsnr, label).eps
        return diffusion.Prediction(eps + shift * w[:, None, None, None])

      return denoise

    return student

  np.testing.assert_allclose(
    distillation_loss(off_by(0.0), keys, x, label), 0.0, atol=1e-8
  )
  values = distillation_loss(off_by(0.5), keys, x, label, low=1.0, high=3.0)
  w = seen[-1]
  np.testing.assert_allclose(values, np.square(0.5 * w / (1 + w)), rtol=1e-3)
  # Uniform: mean 2, variance 1/3; standard errors 0.013 and 0.007.
  assert 1.0 <= w.min() < 1.01
  assert 2.99 < w.max() <= 3.0
  assert abs(w.mean() - 2.0) < 0.05
  assert abs(w.var() - 1 / 3) < 0.03


@pytest.mark.slow
def test_a_network_learns_the_guided_eps_of_a_known_teacher():
  """Less than one percent of the guided eps is left, at every w."""
  network = networks.make_unet(
    **{"channel_mult": (1,), "attention_resolutions": (), "dropout": 0.0},
    **{"num_labels": 3, "out_channels": 1, "takes_w": True},
  )
  model = parametrization.Model(network, "uniform", _SCHEDULE)

  def with_w(params, w):
    return model.denoiser(params, w=w)

  number, steps = 256, 3000
  params = network.init(
    jax.random.key(0), jnp.zeros((1, 4, 4, 1)), jnp.zeros(1), jnp.zeros(1, int)
  )["params"]
  optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

  @jax.jit
  def train(params):
    def step(carry, number_of_step):
      params, state = carry
      key = jax.random.fold_in(jax.random.key(1), number_of_step)
      keys, x, label = draw(key, number)

      def loss(params):
        student = functools.partial(with_w, params)
        return distillation_loss(student, keys, x, label).mean()

      value, gradient = jax.value_and_grad(loss)(params)
      updates, state = optimizer.update(gradient, state)
      return (optax.apply_updates(params, updates), state), value

    carry = params, optimizer.init(params)
    return jax.lax.scan(step, carry, jnp.arange(steps))[0][0]

  params = train(params)
  keys, x, label = draw(jax.random.key(2), 512)
  logsnr = _SCHEDULE.logsnr(jnp.linspace(0.02, 0.98, 512))
  z = diffusion.diffuse(x, diffusion.normal(keys, (4, 4, 1)), logsnr)

  def share(w, given):
    desired = exact(jnp.full(512, w))(z, logsnr, label).eps
    eps = model.denoiser(params, w=jnp.full(512, given))(z, logsnr, label).eps
    return float(jnp.sum((eps - desired) ** 2) / jnp.sum(desired**2))

  errors_of = {w: share(w, w) for w in (0.0, 0.3, 1.0, 4.0)}
  assert max(errors_of.values()) < 0.01, errors_of
  assert share(4.0, 0.0) > 0.1
