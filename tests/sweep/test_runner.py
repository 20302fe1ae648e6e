"""The grid, and a sweep that does no work twice."""

import csv
import itertools
import shutil
import types

import pytest

from cfgd import validation
from cfgd.metrics import evaluate
from cfgd.paper import report
from cfgd.runtime import errors
from cfgd.runtime import lease
from cfgd.sampling import generate
from cfgd.sweep import grid
from cfgd.sweep import results
from cfgd.sweep import runner
from cfgd.training import loop
from configs import sweep_embedded_guidance
from tests.sweep import made


def test_cells_are_a_union_in_the_order_that_saves_work():
  cells = grid.cells(
    {
      "main": {"p_uncond": (0.5, 0.1), "T": (8,), "w": (1, 0)},
      "more": {"p_uncond": (0.1,), "T": (8, 4), "w": (0,)},
    },
    {},
  )
  assert [cell.id for cell in cells] == [
    *("p0.1_T4_w0", "p0.1_T8_w0", "p0.1_T8_w1", "p0.5_T8_w0", "p0.5_T8_w1"),
  ]


def test_any_field_of_sampling_can_be_an_axis():
  axes = {"p_uncond": (0.1,), "T": (8,), "w": (1, 0)}
  cells = grid.cells(
    {
      "kinds": axes | {"guidance": ("cfg", "auto"), "interval": ((), (-2, 3))},
      "cold": axes | {"w": (0,), "score_scale": (1.0, 1.2)},
    },
    {"guidance": "cfg", "interval": (), "score_scale": 1.0},
  )
  assert [(cell.id, cell.variant) for cell in cells] == [
    ("p0.1_T8_w0", ""),
    ("p0.1_T8_w1", ""),
    ("p0.1_T8_w0_guidance-auto", "auto"),
    ("p0.1_T8_w1_guidance-auto", "auto"),
    ("p0.1_T8_w0_interval--2,3", "interval -2,3"),
    ("p0.1_T8_w1_interval--2,3", "interval -2,3"),
    ("p0.1_T8_w0_score_scale-1.2", "score_scale 1.2"),
    ("p0.1_T8_w0_guidance-auto_interval--2,3", "auto, interval -2,3"),
    ("p0.1_T8_w1_guidance-auto_interval--2,3", "auto, interval -2,3"),
  ]


CLASSIFIER = {
  "task": "classifier",
  "model": {"null_row": False, "num_head_channels": 32},
  "diffusion": {"p_uncond": 0.0},
  "train": {"steps": 3},
}


def sweep(config, workdir, **options):
  return runner.sweep(config, workdir, report.writer(config), **options)


def plan(config, workdir):
  return {planned.cell.id: planned for planned in grid.plan(config, workdir)}


def folders(config, workdir):
  return [planned.folder for planned in grid.plan(config, workdir)]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("sweep")
  return workdir, sweep(made.small_sweep(), workdir)


def rows(workdir):
  with (workdir / "results.csv").open() as file:
    return {row["id"]: row for row in csv.DictReader(file) if row["w"]}


def test_a_sweep_trains_samples_scores_and_reports(swept):
  workdir, page = swept
  assert set(rows(workdir)) == {"p0.1_T3_w0", "p0.1_T3_w0.5", "p0.5_T2_w1"}
  assert {path.name for path in (workdir / "runs").iterdir()} == {
    *("p0.1", "p0.5"),
  }
  text = page.read_text()
  assert "0.5 (s=1.5)" in text
  assert "not run" not in text
  assert float(rows(workdir)["p0.1_T3_w0"]["fd_embedded"]) >= 0


def test_the_report_has_real_images_and_how_often_training_saw_them(
  swept, tmp_path, monkeypatch
):
  # A copy: the other tests compare the report of the sweep itself.
  workdir = shutil.copytree(swept[0], tmp_path / "sweep")
  config = made.small_sweep()
  real = {
    "metrics": {"fd_embedded": 0.125, "recall": 0.5},
    "num_samples": 1000,
    "about": {"feature_network_accuracy": 0.75},
  }
  given = []
  add = report.add

  def keep(summary, table, epochs):
    given.append(epochs)
    return add(summary, table, epochs)

  monkeypatch.setattr(evaluate, "held_out", lambda *_: real)
  monkeypatch.setattr(report, "add", keep)
  report.writer(config)(config, workdir, grid.plan(config, workdir))
  # 4,000 training digits.
  assert given == [config.train.steps * config.train.batch_size / 4000]
  text = (workdir / "report.md").read_text()
  assert "| real images |" in text
  assert "75.0% of the held-out images" in text
  with (workdir / "results.csv").open() as file:
    *_, last = csv.DictReader(file)
  assert (last["id"], last["fd_embedded"]) == ("real images", "0.125")
  planned = grid.plan(config, workdir)
  config.data.source = "tfds:no_such_set"
  report.writer(config)(config, workdir, planned)
  assert given[1:] == [None]


def test_the_same_call_does_no_work_twice(swept, monkeypatch):
  workdir, _ = swept
  before = (workdir / "results.csv").read_text()
  monkeypatch.setattr(runner._Job, "_make", None)
  sweep(made.small_sweep(), workdir)
  assert (workdir / "results.csv").read_text() == before


def test_only_missing_cells_are_run_and_give_the_same(swept):
  workdir, _ = swept
  before = rows(workdir)
  (lost,) = (workdir / "cells").glob("p0.1_T3_w0.5-*")
  kept = {
    path: path.stat().st_mtime_ns
    for path in workdir.glob("cells/*/metrics.json")
    if path.parent != lost
  }
  (lost / "metrics.json").unlink()
  sweep(made.small_sweep(), workdir)
  assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
  metrics = ("fd_embedded", "is_embedded", "precision", "recall")
  for cell, row in rows(workdir).items():
    assert [row[name] for name in metrics] == [
      before[cell][name] for name in metrics
    ]


def test_a_cell_of_another_job_is_left_to_it(swept, monkeypatch):
  workdir, _ = swept
  config = made.small_sweep()
  planned = grid.plan(config, workdir)
  theirs, ours = map(results.path, planned[:2])
  finished = theirs.read_text()
  ours.unlink()
  theirs.unlink()
  busy = lease.hold(theirs.parent / "cell", seconds=60, wait=False)
  slept = []

  def sleep(seconds):
    assert ours.exists()  # what is free comes first
    if not slept:
      theirs.write_text(finished)
      busy.__exit__(None, None, None)
    slept.append(seconds)

  monkeypatch.setattr(runner.time, "sleep", sleep)
  busy.__enter__()
  sweep(config, workdir)
  assert slept
  assert theirs.read_text() == finished
  assert set(rows(workdir)) == {one.cell.id for one in planned}


def test_shards_are_runs_of_cells_that_cover_the_sweep():
  axes = {"p_uncond": (0.1, 0.2, 0.5), "T": (8, 64), "w": (0, 1, 2)}
  cells = [
    types.SimpleNamespace(cell=cell, teacher=None)
    for cell in grid.cells({"main": axes}, {})
  ]
  for count in (1, 2, 3, 7, 40):
    shards = [grid.shard(cells, i, count) for i in range(1, count + 1)]
    assert list(itertools.chain(*shards)) == cells
  thirds = [grid.shard(cells, i, 3) for i in (1, 2, 3)]
  assert [{one.cell.p_uncond for one in third} for third in thirds] == [
    *({0.1}, {0.2}, {0.5}),
  ]


def test_a_failed_training_is_tried_once_and_shards_do_what_is_left(
  swept, monkeypatch
):
  workdir, _ = swept
  config = made.small_sweep()
  planned = grid.plan(config, workdir)
  for one in planned:
    results.path(one).unlink()
  tried = []

  def train(config, run_dir, *, wait):
    tried.append(run_dir.name)
    if config.diffusion.p_uncond == 0.1:
      raise ValueError("made to fail\nin two lines")

  with monkeypatch.context() as patched:
    patched.setattr(loop, "train", train)
    with pytest.raises(
      errors.RunError,
      match=r"2 of 3 cells failed \(p0.1_T3_w0: ValueError: mad",
    ):
      sweep(config, workdir)
  assert tried == ["p0.1", "p0.5"]
  assert set(rows(workdir)) == {"p0.5_T2_w1"}
  assert len(list(workdir.glob("cells/*/error.txt"))) == 2
  sweep(config, workdir, shard=(1, 3))
  assert set(rows(workdir)) == {"p0.1_T3_w0", "p0.5_T2_w1"}
  sweep(config, workdir, shard=(2, 3))
  assert set(rows(workdir)) == {one.cell.id for one in planned}
  assert not list(workdir.glob("cells/*/error.txt"))


def test_other_settings_are_other_cells(swept):
  workdir, _ = swept
  config = made.small_sweep()
  before = folders(config, workdir)
  config.sampling.num_samples = 30
  assert not {*before} & {*folders(config, workdir)}


def test_what_has_no_effect_names_no_cell(swept, set_defaults):
  workdir, _ = swept
  config = made.small_sweep()
  unguided, guided, _ = grid.plan(config, workdir)
  assert (unguided.cell.w, guided.cell.w) == (0.0, 0.5)
  before = folders(config, workdir)[:2]
  config.sampling.quantile = 0.9
  config.sampling.batch_size = config.metrics.batch_size = 5
  assert folders(config, workdir)[:2] == before
  config.sampling.interval = (-2.0, 3.0)
  now = folders(config, workdir)[:2]
  assert [a == b for a, b in zip(now, before, strict=True)] == [True, False]
  set_defaults(optim_shift=0.0, sampling_spice=0.0, metrics_more=1)
  config = made.small_sweep()
  assert folders(config, workdir)[:2] == before
  config.metrics.more = 2
  assert folders(config, workdir)[:2] != before


def test_a_sweep_goes_on_when_fields_are_added(
  swept, set_defaults, monkeypatch
):
  workdir, _ = swept
  set_defaults(data_tint=0.0, sampling_spice=0.0, metrics_more=1)
  monkeypatch.setattr(runner._Job, "_make", None)
  sweep(made.small_sweep(), workdir)


def test_cells_of_other_defaults_are_refused(swept, set_defaults):
  workdir, _ = swept
  set_defaults(metrics_neighbours=4)
  with pytest.raises(
    errors.UserError, match=r"metrics\.neighbours: 3 there, 4 now.*delete"
  ):
    sweep(made.small_sweep(), workdir)


def test_a_classifier_that_trains_longer_is_another(tmp_path):
  config = made.small_sweep()
  config.sampling.guidance = "classifier"
  config.sweep.classifier = CLASSIFIER
  before = folders(config, tmp_path)
  config.sweep.classifier.train.steps = 4
  after = folders(config, tmp_path)
  assert before[0] == after[0]  # unguided
  assert before[1] != after[1]


def test_a_classifier_trains_whatever_the_sampler_of_its_cells(tmp_path):
  config = made.small_sweep()
  config.sweep.classifier = CLASSIFIER
  axes = {"p_uncond": (0.1,), "T": (3,), "w": (0.5,)}
  axes["guidance"] = ("classifier",)
  config.sweep.grids = {"mean": axes | {"sampler": ("ancestral_mean_shift",)}}
  (planned,) = grid.plan(config, tmp_path)
  validation.validate(planned.guide_config, num_devices=1)


def test_an_unknown_field_of_the_classifier_is_named(tmp_path):
  config = made.small_sweep()
  config.sweep.classifier = {"task": "classifier", "train": {"stepz": 3}}
  with pytest.raises(errors.UserError, match=r"^sweep.classifier.train.stepz"):
    grid.plan(config, tmp_path)


def test_a_plan_has_the_classifier_of_the_cells_that_it_guides(tmp_path):
  config = made.small_sweep()
  config.sweep.classifier = CLASSIFIER
  config.sweep.seeds = (4,)
  config.sweep.grids.main.guidance = ("cfg", "classifier")
  free, *_, guided = (
    one for one in grid.plan(config, tmp_path) if one.cell.w == 0.5
  )
  assert free.guide_config is free.guide_dir is None
  assert guided.guide_dir == tmp_path / "runs" / "classifier_seed4"
  assert guided.config.sampling.guide_dir == str(guided.guide_dir)
  assert guided.guide_config.task == "classifier"
  assert guided.guide_config.seed == 4
  assert guided.settings["classifier.train.steps"] == 3
  # Wherever the sweep is.
  elsewhere = plan(config, tmp_path / "elsewhere")[guided.cell.id]
  assert elsewhere.folder.name == guided.folder.name
  assert str(tmp_path) not in str(guided.settings)
  with config.unlocked():
    config.sampling.guide_dir = "given"
  given = plan(config, tmp_path)[guided.cell.id]
  assert given.guide_config is None
  assert given.settings["sampling.second_dir"] == "given"


def test_a_sweep_of_an_earlier_version_keeps_its_folders(tmp_path):
  """Names of cells as they were first made; finished sweeps have them."""
  config = sweep_embedded_guidance.get_config()
  config.sweep.seeds = (1,)
  assert {
    "p0.1_T16_w0.3_seed1-318e5031",
    "p0.1_T16_w0.3_guidance-classifier_seed1-a87dd1a3",
    "p0.1_T16_w0_guidance-classifier_null_seed1-0804160a",
    "p0.1_T16_w0_noise_scale-0.4_seed1-105b6826",
  } <= {folder.name for folder in folders(config, tmp_path)}


def test_a_failing_cell_is_recorded_and_the_rest_go_on(tmp_path, monkeypatch):
  sample = generate.generate

  def fail(config, workdir):
    if config.sampling.w == 0:
      raise errors.NonFiniteError("made to fail")
    return sample(config, workdir)

  monkeypatch.setattr(generate, "generate", fail)
  with pytest.raises(
    errors.RunError, match=r"1 of 3 cells failed.*p0\.1_T3_w0"
  ):
    sweep(made.small_sweep(), tmp_path)
  assert set(rows(tmp_path)) == {"p0.1_T3_w0.5", "p0.5_T2_w1"}
  (note,) = tmp_path.glob("cells/*/error.txt")
  assert "made to fail" in note.read_text()
  assert "not run" in (tmp_path / "report.md").read_text()


def test_bad_grids_are_refused_before_anything_is_written(tmp_path):
  config = made.small_sweep()
  config.sweep.grids.main.w = (0.0, -2.0)
  with pytest.raises(errors.UserError, match=r"main\.w=-2"):
    sweep(config, tmp_path)
  for field, value, words in (
    ("w", (), "at least one value"),
    ("w", ("a",), "must be a number"),
    ("guidance", (1.0,), "must be a str"),
    ("strength", (1.0,), "no such axis"),
    ("T", (2.5,), "must be an integer"),
    ("quantile", (0.9,), "no effect in any cell.*with sampling.threshold='c"),
    ("classifier_w", (1.0,), "no effect in any cell"),
  ):
    config = made.small_sweep()
    with config.ignore_type(), config.unlocked():
      config.sweep.grids.main[field] = value
    with pytest.raises(errors.UserError, match=rf"main\.{field}=.*{words}"):
      sweep(config, tmp_path)
  config = made.small_sweep()
  with config.unlocked():
    config.sweep.grids.main.w = (0.0,)
    config.sweep.grids.main.interval = ((), (-2.0, 3.0))
  with pytest.raises(
    errors.UserError, match=r"main\.interval=\(-2.0, 3.0\).*sampling\.w=0"
  ):
    sweep(config, tmp_path)
  config.sweep.grids = {}
  with pytest.raises(errors.UserError, match="at least one grid"):
    sweep(config, tmp_path)
  assert not list(tmp_path.iterdir())
