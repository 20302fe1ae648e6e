"""Sweeps that train students: once per teacher, and what they cost."""

from etils import epath
import numpy as np
import pytest

from cfgd import build
from cfgd.runtime import errors
from cfgd.sweep import grid
from cfgd.sweep import planner
from cfgd.sweep import results
from cfgd.sweep import runner
from tests.sweep import made

STUDENT = {"train": {"steps": 3}, "distill": {"w_high": 2.0}}


def make_sweep():
  """Return a tiny sweep of two models, and of the students of both."""
  config = made.small_sweep()
  config.sweep.grids.student = {
    "p_uncond": (0.1, 0.5),
    "T": (3,),
    "w": (0.0, 1.0),
    "guidance": ("distilled",),
  }
  config.sweep.student = STUDENT
  return config


def test_a_plan_has_one_student_of_each_teacher(tmp_path):
  config = make_sweep()
  config.sweep.seeds = (0, 4)
  plan = grid.plan(config, tmp_path)
  names = [training.run_dir.name for training in grid.trainings(plan)]
  for seed in (0, 4):
    for p in ("p0.1", "p0.5"):
      name = f"{p}_seed{seed}"
      student = f"student_{name}_of_step{config.train.steps}"
      assert names.index(name) < names.index(student)
  assert len(names) == len(set(names)) == 8
  for one in plan:
    distilled = ("guidance", "distilled") in one.cell.fields
    assert (one.teacher is not None) == distilled
    if distilled:
      assert one.config.task == "guided_student"
      assert one.config.seed == one.teacher.config.seed == one.cell.seed
      assert one.config.distill.teacher == str(one.teacher.run_dir)
      assert one.settings["teacher.diffusion.p_uncond"] == one.cell.p_uncond
      assert str(tmp_path) not in str(one.settings)


def test_other_cells_keep_their_folders(tmp_path):
  plain = {one.folder.name for one in grid.plan(made.small_sweep(), tmp_path)}
  both = {one.folder.name for one in grid.plan(make_sweep(), tmp_path)}
  assert plain < both


def test_another_teacher_or_training_makes_other_cells(tmp_path):
  def folders(config):
    return {
      one.cell.id: one.folder.name
      for one in grid.plan(config, tmp_path)
      if one.teacher is not None
    }

  before = folders(make_sweep())
  for field, value in (
    ("train.steps", 5),
    ("sweep.student.train.steps", 4),
    ("sweep.student.distill.w_high", 3.0),
  ):
    config = make_sweep()
    config.update_from_flattened_dict({field: value})
    after = folders(config)
    assert set(after) == set(before)
    assert not set(after.values()) & set(before.values()), field


def test_without_a_student_the_sweep_says_what_is_missing(tmp_path):
  config = make_sweep()
  config.sweep.student = {}
  with pytest.raises(
    errors.UserError, match="does not sample task='diffusion'"
  ):
    grid.plan(config, tmp_path)
  config.sweep.student = {"train": {"stepz": 1}}
  with pytest.raises(errors.UserError, match=r"^sweep.student.train.stepz=1"):
    grid.plan(config, tmp_path)
  config.sweep.student = STUDENT
  config.sweep.grids.student.w = (0.0, 3.0)
  with pytest.raises(
    errors.UserError, match=r"it was trained for distill\.w_low"
  ):
    grid.plan(config, tmp_path)


def test_a_sweep_trains_each_student_once_and_resumes(tmp_path):
  tmp_path = epath.Path(tmp_path)
  config = make_sweep()
  config.sweep.grids.student.p_uncond = (0.1,)
  runner.train(config, tmp_path, shard=(2, 2))  # the student waits for no job
  there = {path.name for path in (tmp_path / "runs").iterdir()}
  assert {"p0.1", "student_p0.1_of_step2"} <= there
  runner.sweep(config, tmp_path, lambda *_: None)
  plan = grid.plan(config, tmp_path)
  found = {one.cell.id: results.path(one) for one in plan}
  assert all(path.exists() for path in found.values())
  texts = {name: path.read_text() for name, path in found.items()}
  runner.sweep(config, tmp_path, lambda *_: None)
  assert texts == {name: path.read_text() for name, path in found.items()}

  # A trained student needs no teacher any more.
  cell = next(one for one in plan if one.teacher is not None)
  results.path(cell).unlink()
  (tmp_path / "runs" / "p0.1").rmtree()
  runner.require_trained(config, tmp_path)
  runner.sweep(config, tmp_path, lambda *_: None)
  assert results.path(cell).exists()
  assert not (tmp_path / "runs" / "p0.1").exists()


def test_a_teacher_that_trains_on_has_another_student(tmp_path):
  config = make_sweep()
  before = {one.run_dir for one in grid.plan(config, tmp_path) if one.teacher}
  config.train.steps = 5
  after = [one for one in grid.plan(config, tmp_path) if one.teacher]
  assert not before & {one.run_dir for one in after}
  assert all(one.config.distill.teacher_step == 5 for one in after)


def test_a_plan_counts_one_pass_of_students_and_fewer_of_late_ones(tmp_path):
  config = make_sweep()
  parts = {
    part.name: part
    for part in planner.costs(config, grid.plan(config, tmp_path))
  }
  one = build.forward_flop(config)
  student = parts["student, p_uncond=0.1"]
  assert student.images == 3 * config.train.batch_size
  # Forward, backward, and the teacher with guidance.
  np.testing.assert_allclose(student.flop, student.images * 5 * one)
  assert parts["p_uncond=0.1, T=3, distilled"].evaluations == 3
  assert parts["p_uncond=0.1, T=3"].evaluations == (3 + 6) / 2

  config.model.condition = "decoder"
  share = build.branch_cost(config)
  assert 0.3 < share < 0.9
  parts = {
    part.name: part
    for part in planner.costs(config, grid.plan(config, tmp_path))
  }
  np.testing.assert_allclose(
    parts["p_uncond=0.1, T=3"].evaluations, (3 + 3 * (1 + share)) / 2
  )
  np.testing.assert_allclose(
    parts["student, p_uncond=0.1"].evaluations, 4 + share
  )
