"""Checkpoints are found, verified, passed over when damaged, and kept."""

import shutil

import jax
import numpy as np
import pytest

from cfgd.runtime import checkpoint
from cfgd.runtime import errors
from cfgd.runtime import manifest
from cfgd.training import state as state_lib

META = {"config": "c0ffee00", "preprocessing": "area4"}


def make_state(step):
  values = np.arange(6, dtype=np.float32) + np.float32(step)
  # Arrays without axes: Orbax saves no NumPy scalars.
  return state_lib.TrainState(
    step=np.array(step, np.int32),
    skipped=np.array(0, np.int32),
    params={"w": values},
    ema_params={"w": values / 3},
    opt_state=(values * 2,),
  )


def open_at(workdir, keep=3, keep_every=0, keep_first=0):
  return checkpoint.Checkpointer(
    workdir, keep=keep, keep_every=keep_every, keep_first=keep_first
  )


def save(workdir, *steps, **options):
  checkpoints = open_at(workdir, **options)
  for step in steps:
    checkpoints.save(make_state(step), META)
  checkpoints.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("saved")
  save(workdir, 1, 2, 3)
  return workdir


@pytest.fixture
def workdir(saved, tmp_path):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  return tmp_path


def damage(workdir, step, item="state"):
  files = [
    path
    for path in (workdir / f"checkpoints/{step}/{item}").rglob("*")
    if path.is_file() and path.stat().st_size > 20
  ]
  path = max(files, key=lambda file: file.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def restored_step(workdir):
  checkpoints = open_at(workdir)
  state = checkpoints.restore_newest(make_state(0), META)
  checkpoints.close()
  jax.tree.map(np.testing.assert_array_equal, state, make_state(state.step))
  return int(state.step)


def test_the_newest_is_restored(workdir):
  assert restored_step(workdir) == 3


def test_a_damaged_one_is_passed_over_and_its_step_saved_again(workdir, caplog):
  damage(workdir, 3)
  assert checkpoint.find_good(workdir) == 2
  assert checkpoint.steps(workdir) == [1, 2, 3]  # looking changes nothing
  assert restored_step(workdir) == 2
  assert "3 is damaged (state/" in caplog.text
  assert "has changed): using an older one" in caplog.text
  assert (workdir / "checkpoints/3.damaged").is_dir()
  save(workdir, 3)
  assert restored_step(workdir) == 3


def test_training_does_not_start_anew_where_all_are_damaged(workdir):
  for step in (1, 2, 3):
    damage(workdir, step)
  with pytest.raises(errors.RunError, match=r"all checkpoints in .* damaged"):
    open_at(workdir)
  assert checkpoint.steps(workdir) == [1, 2, 3]


def test_sampling_passes_over_damaged_averages_alone(workdir):
  damage(workdir, 3, "state")
  assert checkpoint.find_step(workdir, -1) == 3
  damage(workdir, 3, "ema")
  assert checkpoint.find_step(workdir, -1) == 2
  with pytest.raises(errors.RunError, match=r"3 is damaged \(ema/"):
    checkpoint.read_params(workdir, 3, {"w": np.zeros(6, np.float32)}, "ema")


def test_one_without_a_manifest_is_read_and_said_not_to_be_verified(
  workdir, caplog
):
  (workdir / "checkpoints/3" / manifest.NAME).unlink()
  assert restored_step(workdir) == 3
  assert "no manifest: not verified" in caplog.text


def test_what_killed_saves_and_deletions_leave_is_removed(workdir):
  folder = workdir / "checkpoints"
  (folder / "4.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
  shutil.rmtree(folder / "1/ema")
  (folder / "1" / manifest.NAME).unlink()
  assert restored_step(workdir) == 3
  save(workdir, 4)
  assert {path.name for path in folder.iterdir()} == {"2", "3", "4"}


def test_another_config_or_preprocessing_is_refused(workdir):
  checkpoints = open_at(workdir)
  for name in META:
    with pytest.raises(errors.UserError, match=f"was made with {name} "):
      checkpoints.restore_newest(make_state(0), META | {name: "other"})
  checkpoints.close()


def test_first_newest_and_multiples_stay(tmp_path):
  save(tmp_path, *range(1, 9), keep=2, keep_every=4, keep_first=1)
  assert checkpoint.steps(tmp_path) == [1, 4, 7, 8]


def test_a_save_that_fails_is_told_and_costs_no_other(workdir, monkeypatch):
  def full(folder, under):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(manifest, "write", full)
  words = r"step 4 of .* \(OSError: .*No space left.*last good one: step 3"
  state = make_state(4)
  checkpoints = open_at(workdir, keep=1)
  checkpoints.save(state, META)
  with pytest.raises(errors.RunError, match=words):
    checkpoints.close()
  checkpoints = open_at(workdir, keep=1)
  checkpoints.save(state, META)
  with pytest.raises(errors.RunError, match=words):  # at a step after it
    while True:
      checkpoints.check()
  checkpoints.close()
  assert checkpoints.newest_step() == 3
  assert checkpoint.steps(workdir) == [1, 2, 3]
  assert restored_step(workdir) == 3


def test_a_store_that_does_not_answer_ends_the_run(workdir, monkeypatch):
  checkpoints = open_at(workdir)
  checkpoints.save(make_state(4), META)
  manager = checkpoints._manager
  monkeypatch.setattr(checkpoint, "_SAVE_SECONDS", 0.1)
  with monkeypatch.context() as patched:
    patched.setattr(manager, "is_saving_in_progress", lambda: True)
    with pytest.raises(errors.Outage, match=r"not done after 0\.1 s.*: step 3"):
      checkpoints.close()
  checkpoints.close()  # waits no more
  manager.close()


def test_inspection_tells_good_from_bad(workdir):
  damage(workdir, 2)
  (workdir / "checkpoints/1" / manifest.NAME).unlink()
  one, two, three = checkpoint.inspect(workdir)
  assert (one.fault, one.state) == (None, "no manifest: not verified")
  assert "has changed" in two.fault
  assert (three.fault, three.state) == (None, "verified")
  assert three.meta == META
  assert three.size > 100
