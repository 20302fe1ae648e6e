"""Trainings of a sweep as jobs of their own, before its cells."""

import pytest

from cfgd.paper import report
from cfgd.runtime import checkpoint
from cfgd.runtime import errors
from cfgd.sweep import grid
from cfgd.sweep import planner
from cfgd.sweep import runner
from cfgd.training import loop
from configs import sweep_embedded_guidance
from tests.sweep import made


def names(config):
  return [k.run_dir.name for k in grid.trainings(grid.plan(config, "sweep"))]


def test_each_model_is_listed_once():
  assert names(made.small_sweep()) == ["p0.1", "p0.5"]


def test_guides_and_seeds_are_models_too():
  config = sweep_embedded_guidance.get_config()
  config.sweep.seeds = (0, 1)
  assert names(config) == [
    *("p0.1_seed0", "classifier_seed0", "p0.1_seed1", "classifier_seed1"),
  ]


def test_the_plan_says_which_jobs_to_start():
  config = made.small_sweep()
  line = planner.jobs(config, "sweep")
  assert "--part=trainings in up to 2, --shard=1/2 and so on" in line
  assert "(p0.1, p0.5)" in line
  assert line.endswith("--part=cells in up to 3.")
  folders = planner.run_dirs(config, "sweep")
  assert folders == ["sweep/runs/p0.1", "sweep/runs/p0.5"]


@pytest.mark.parametrize(
  ("shard", "wanted"),
  [
    ((1, 1), ["p0.1", "p0.5"]),
    ((1, 2), ["p0.1"]),
    ((2, 2), ["p0.5"]),
    ((3, 3), []),
  ],
)
def test_shards_divide_the_models(tmp_path, monkeypatch, shard, wanted):
  trained = []
  monkeypatch.setattr(loop, "train", lambda config, at: trained.append(at.name))
  runner.train(made.small_sweep(), tmp_path, shard=shard)
  assert trained == wanted


def test_a_failed_training_is_named_and_the_others_run(tmp_path, monkeypatch):
  trained = []

  def train(config, run_dir):
    if run_dir.name == "p0.1":
      raise errors.NonFiniteError("4 steps in a row")
    trained.append(run_dir.name)

  monkeypatch.setattr(loop, "train", train)
  with pytest.raises(errors.RunError, match=r"p0\.1: NonFiniteError: 4 steps"):
    runner.train(made.small_sweep(), tmp_path)
  assert trained == ["p0.5"]


def test_a_stop_is_passed_on(tmp_path, monkeypatch):
  def train(config, run_dir):
    raise errors.Preempted("step 5 is saved")

  monkeypatch.setattr(loop, "train", train)
  with pytest.raises(errors.Preempted):
    runner.train(made.small_sweep(), tmp_path)


def test_cells_are_refused_until_their_models_are_trained(tmp_path):
  config = made.small_sweep()
  with pytest.raises(errors.UserError, match=r"p0\.1, p0\.5; run --part=train"):
    runner.require_trained(config, tmp_path)
  runner.train(config, tmp_path, shard=(1, 2))
  assert checkpoint.steps(tmp_path / "runs" / "p0.1")[-1] == config.train.steps
  assert not (tmp_path / "runs" / "p0.5").exists()
  with pytest.raises(errors.UserError, match=r"/runs: p0\.5; run"):
    runner.require_trained(config, tmp_path)
  # The first half of the cells needs only the model that is trained.
  runner.require_trained(config, tmp_path, shard=(1, 2))
  # And a cell that is done needs none.
  last = grid.plan(config, tmp_path)[-1].folder
  last.mkdir(parents=True)
  (last / "metrics.json").write_text("{}")
  runner.require_trained(config, tmp_path)


def test_a_sweep_in_parts_trains_in_the_first_alone(tmp_path, monkeypatch):
  config = made.small_sweep()
  runner.train(config, tmp_path)
  monkeypatch.setattr(loop, "_run", lambda *_: pytest.fail("trains again"))
  page = runner.sweep(config, tmp_path, report.writer(config))
  assert "not run" not in page.read_text()
