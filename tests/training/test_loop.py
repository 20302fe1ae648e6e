"""Real short trainings: resume to the bit, workdirs, runs that diverge."""

import json
import os
import re
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgd import build
from cfgd.runtime import checkpoint
from cfgd.runtime import errors
from cfgd.runtime import lease
from cfgd.runtime import preemption
from cfgd.runtime import watchdog
from cfgd.sampling import generate
from cfgd.training import events
from cfgd.training import loop
from cfgd.training import state as state_lib
from configs import imagenet64_classifier


def final(config, workdir):
  """Return the newest state in a workdir as NumPy arrays."""
  like = state_lib.create(build.initial_params(config), build.optimizer(config))
  checkpoints = checkpoint.Checkpointer(workdir, keep=3, keep_every=0)
  state = checkpoints.restore_newest(like)
  checkpoints.close()
  return state


def assert_equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def signal_at(monkeypatch, number, step):
  """Let a process get a signal when a step begins."""
  beat = watchdog.Watchdog.beat

  def signalling(dog, what, patience=1):
    beat(dog, what, patience)
    if what == f"step {step}":
      os.kill(os.getpid(), number)

  monkeypatch.setattr(watchdog.Watchdog, "beat", signalling)


@pytest.fixture
def answering_signals():
  before = signal.getsignal(signal.SIGTERM)
  preemption.install()
  yield
  signal.signal(signal.SIGTERM, before)


def test_resume_equals_the_straight_run_bit_for_bit(
  tiny, tmp_path, monkeypatch, answering_signals
):
  tiny.model.dropout = 0.2
  tiny.data.flip = True
  tiny.train.steps = 5
  loop.train(tiny, tmp_path / "straight")
  tiny.train.checkpoint_every = 5
  with monkeypatch.context() as patched:
    signal_at(patched, signal.SIGTERM, 2)
    with pytest.raises(errors.Preempted, match="step 2 of 5 is saved in"):
      loop.train(tiny, tmp_path / "resumed")
  assert checkpoint.steps(tmp_path / "resumed") == [2]
  for steps in (3, 5):
    tiny.train.steps = steps
    loop.train(tiny, tmp_path / "resumed")
  straight, resumed = (
    final(tiny, tmp_path / name) for name in ("straight", "resumed")
  )
  assert straight.step == 5
  assert_equal(straight, resumed)
  moved = jax.tree.map(
    lambda a, b: not np.array_equal(a, b),
    straight.params,
    straight.ema_params,
  )
  assert any(jax.tree.leaves(moved))


def test_a_finished_run_is_left_alone(tiny, tmp_path):
  loop.train(tiny, tmp_path)
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
  loop.train(tiny, tmp_path)
  after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
  assert set(before) == set(after)
  folders = {path for path in before if path.is_dir()}
  assert all(before[path] == after[path] for path in set(before) - folders)


def test_another_config_is_refused_before_anything_is_written(tiny, tmp_path):
  loop.train(tiny, tmp_path)
  before = sorted(tmp_path.rglob("*"))
  tiny.optim.learning_rate = 1.0
  tiny.train.steps = 4
  with pytest.raises(errors.UserError, match=r"optim.learning_rate: 0.002"):
    loop.train(tiny, tmp_path)
  assert sorted(tmp_path.rglob("*")) == before


def test_checkpoints_say_what_they_are(tiny, tmp_path):
  tiny.train.steps = 4
  tiny.train.keep = 2
  loop.train(tiny, tmp_path)
  assert checkpoint.steps(tmp_path) == [3, 4]
  meta = json.loads((tmp_path / "checkpoints/4/meta/metadata").read_text())
  assert meta["preprocessing"] == "mnist5k-crop24-area4"


def test_parameters_are_read_alone(tiny, tmp_path):
  loop.train(tiny, tmp_path)
  state = final(tiny, tmp_path)
  for weights, desired in (("ema", state.ema_params), ("raw", state.params)):
    like = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), desired
    )
    assert_equal(checkpoint.read_params(tmp_path, 2, like, weights), desired)


def test_a_classifier_trains_resumes_and_is_tried_on_held_out_images(
  tiny, tmp_path
):
  imagenet64_classifier.as_classifier(tiny, num_res_blocks=1)
  tiny.model.model_channels = tiny.model.num_head_channels = 32
  tiny.optim.decay_steps = 0
  tiny.train.batch_size = 8
  tiny.train.sample_every = 2
  tiny.train.heldout_images = 10
  for steps in (1, 2):
    tiny.train.steps = steps
    loop.train(tiny, tmp_path / "resumed")
  loop.train(tiny, tmp_path / "straight")
  assert_equal(
    *(final(tiny, tmp_path / name) for name in ("straight", "resumed"))
  )
  path = tmp_path / "resumed/accuracy/step_00000002.json"
  about = json.loads(path.read_text())
  assert about["images"] == 10
  assert (about["heldout_accuracy"] * 10) % 1 < 1e-6
  assert 1 < about["heldout_loss"] < 5
  with pytest.raises(errors.UserError, match="task='classifier'"):
    generate.generate(tiny, tmp_path / "resumed")


def test_a_diffusion_model_trains_on_random_crops(tiny, tmp_path):
  tiny.data.random_crop = 0.8
  tiny.train.steps = 1
  loop.train(tiny, tmp_path)
  assert checkpoint.find_step(tmp_path, -1) == 1


def test_missing_checkpoints_are_named(tiny, tmp_path):
  with pytest.raises(errors.UserError, match="no checkpoint in"):
    checkpoint.find_step(tmp_path, -1)
  loop.train(tiny, tmp_path)
  assert checkpoint.find_step(tmp_path, -1) == 2
  with pytest.raises(errors.UserError, match=r"=7: .* checkpoints at 1, 2"):
    checkpoint.find_step(tmp_path, 7)


def test_a_run_that_diverges_ends_and_names_its_checkpoint(tiny, tmp_path):
  tiny.train.steps = 30
  tiny.train.max_skipped = 3
  tiny.optim.learning_rate = 1e30
  with pytest.raises(
    errors.NonFiniteError,
    match=r"4 steps in a row, \d+ to \d+, had .* more than "
    r"train.max_skipped=3; last checkpoint: step \d",
  ):
    loop.train(tiny, tmp_path)


class Scalars:
  """A writer that keeps what is logged."""

  def __init__(self):
    self.logged = {}

  def write_scalars(self, step, scalars):
    self.logged.setdefault(step, {}).update(scalars)

  def flush(self):
    pass

  def close(self):
    pass


@pytest.fixture
def untrained(tiny, monkeypatch):
  """Return a config whose network is not looked at, and costs nothing."""
  tiny.model.null_row = False
  tiny.diffusion.p_uncond = tiny.sampling.w = 0.0
  params = {"w": np.zeros(3, np.float32)}
  monkeypatch.setattr(build, "initial_params", lambda _: params)
  return tiny


@pytest.fixture
def scripted(untrained, monkeypatch):
  """Return (workdir, losses) -> (steps dispatched, logs, the run's error)."""
  untrained.train.max_skipped = 3
  untrained.train.checkpoint_every = 5

  def train(workdir, losses):
    taken = []

    def step(state, batch, traced):
      del batch, traced
      loss = losses[int(state.step)]
      taken.append(loss)
      finite = bool(np.isfinite(loss))
      state = state.replace(
        step=state.step + 1, skipped=state.skipped + (not finite)
      )
      metrics = {"loss": loss, "grad_norm": 2 * loss, "finite": finite}
      metrics |= {"skipped": state.skipped, "measured": {}}
      return state, jax.tree.map(jnp.asarray, metrics)

    writer = Scalars()
    monkeypatch.setattr(events, "writer", lambda workdir: writer)
    monkeypatch.setattr(build, "train_step", lambda _: step)
    untrained.train.steps = len(losses)
    try:
      loop.train(untrained, workdir)
    except errors.NonFiniteError as error:
      return len(taken), writer.logged, str(error)
    return len(taken), writer.logged, None

  return train


def test_skipped_steps_now_and_then_neither_end_a_run_nor_hide_its_loss(
  untrained, scripted, tmp_path
):
  untrained.train.log_every = 5
  bad = [np.nan, np.inf, np.nan]  # as many in a row as may be
  losses = [1.0, *bad, 3.0] * 4 + [*bad, 2.0, np.nan]
  taken, logged, error = scripted(tmp_path, losses)
  assert (taken, error) == (25, None)
  means = [logged[number]["loss"] for number in (5, 10, 15, 20, 25)]
  assert means == [2.0, 2.0, 2.0, 2.0, 2.0]
  assert logged[25]["grad_norm"] == 4.0
  assert [logged[number]["skipped_in_window"] for number in (20, 25)] == [3, 4]
  assert logged[25]["skipped_steps"] == 16


def test_a_window_of_skipped_steps_alone_logs_no_loss(
  untrained, scripted, tmp_path
):
  untrained.train.log_every = 2
  _, logged, error = scripted(tmp_path, [1.0, 1.0, np.nan, np.nan, 1.0, 1.0])
  assert error is None
  assert "loss" not in logged[4]
  assert "grad_norm" not in logged[4]
  assert logged[4]["skipped_in_window"] == 2
  assert logged[6]["loss"] == 1.0


def test_too_many_in_a_row_end_a_run_long_before_it_logs(
  untrained, scripted, tmp_path
):
  untrained.train.log_every = 1000
  untrained.train.checkpoint_every = 1000
  taken, logged, error = scripted(tmp_path, [1.0] * 10 + [np.nan] * 190)
  assert re.fullmatch(
    "4 steps in a row, 11 to 14, had a loss or gradient that is not finite and "
    "were skipped, more than train.max_skipped=3; last checkpoint: none",
    error,
  )
  assert taken <= 14 + 8
  assert logged[14]["skipped_in_window"] == 4
  assert logged[14]["loss"] == 1.0


def test_a_resumed_run_goes_on_counting_steps_in_a_row(scripted, tmp_path):
  losses = [1.0, 1.0, 1.0, np.nan, np.nan]
  assert scripted(tmp_path, losses)[2] is None
  losses += [np.nan] * 2 + [1.0] * 8
  taken, _, error = scripted(tmp_path, losses)
  assert "4 steps in a row, 4 to 7," in error
  assert "last checkpoint: step 5" in error
  assert taken <= 2 + 8


class Never:
  """A result that the devices never finish, until someone has seen that."""

  def __init__(self, seen):
    self._seen = seen

  def is_ready(self):
    return self._seen.is_set()

  def __array__(self, dtype=None, copy=None):
    assert self._seen.wait(60)
    return np.zeros((), dtype)


def test_devices_that_hang_are_noticed_while_steps_are_dispatched(
  untrained, tmp_path, monkeypatch
):
  """Each call of the step returns at once, as on an accelerator."""
  untrained.train.update(
    {"steps": 200, "log_every": 200, "checkpoint_every": 200}
  )
  untrained.train.watchdog_seconds = 1.0
  seen, hung, dispatched = threading.Event(), [], []

  def end(monitor):
    hung.append((monitor._activity, len(dispatched)))
    monitor.close()
    seen.set()

  def step(state, batch, traced):
    del batch, traced
    number = len(dispatched) + 1
    dispatched.append(number)
    never = number >= 3
    metrics = dict.fromkeys(("loss", "grad_norm", "skipped"), jnp.zeros(()))
    metrics |= {"finite": jnp.ones(()), "measured": {}}
    if never:
      metrics["loss"] = Never(seen)
    time.sleep(0.01)  # of the host, for a batch
    return state, metrics

  monkeypatch.setattr(watchdog.Watchdog, "_end", end)
  monkeypatch.setattr(build, "train_step", lambda _: step)
  loop.train(untrained, tmp_path)
  ((what, number),) = hung
  assert what == "step 3"
  assert number < 20  # the host did not run ahead for ever


def test_out_of_memory_names_the_fields_to_lower(tiny, tmp_path, monkeypatch):
  def step(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

  monkeypatch.setattr(build, "train_step", lambda _: step)
  words = r"lower train\.batch_size=8 or set model\.remat=True"
  with pytest.raises(errors.RunError, match=words):
    loop.train(tiny, tmp_path)


def test_two_jobs_do_not_train_in_one_workdir(tiny, tmp_path):
  with lease.hold(tmp_path / "train", seconds=60, wait=False):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(lease.Busy, match="held by process"):
      loop.train(tiny, tmp_path, wait=False)
    after = {path.name for path in tmp_path.iterdir()}
  assert after - {path.name for path in before} == {"config.json"}


def test_tensorboard_and_grids_are_written(tiny, tmp_path):
  tiny.train.sample_every = 2
  loop.train(tiny, tmp_path)
  assert list(tmp_path.glob("events.out.tfevents.*"))
  assert (tmp_path / "grids/step_00000002.png").read_bytes()[1:4] == b"PNG"
