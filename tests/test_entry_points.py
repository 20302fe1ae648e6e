"""The commands as a user types them, in processes of their own."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from cfgd.runtime import errors
from experiments import launcher
from tests import processes
from tests import tiny as tiny_config
from tests.data import imagenet_like

TINY = tiny_config.flags(tiny_config.TINY)
TINY_GRIDS = tiny_config.flags(
  {
    "sweep.grids.main.p_uncond": (0.1, 0.5),
    "sweep.grids.main.T": (3,),
    "sweep.grids.main.w": (0.5,),
    "sweep.grids.fast.T": (2,),
    "sweep.grids.fast.w": (0.0, 1.0),
  }
)


def succeed(name, *arguments):
  code, out, err = processes.run(name, *arguments)
  assert code == 0, err
  return out, err


@pytest.fixture(scope="module")
def forks():
  with processes.Forks() as forks:
    yield forks


@pytest.fixture(scope="module")
def fail(forks):
  """Return a function: run, and demand an error in one line with words."""

  def run_and_fail(words, name, *arguments):
    code, _, err = forks.run(name, *arguments)
    assert code not in (0, None)
    told = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(told) == 1, err
    assert words in told[0], err
    assert "Traceback" not in err, err

  return run_and_fail


def everything(folder):
  return {
    path: path.stat().st_mtime_ns
    for path in pathlib.Path(folder).rglob("*")
    if path.is_file()
  }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("trained")
  _, err = succeed("train", f"--workdir={workdir}", *TINY)
  assert "loss=" in err
  assert "4 devices (cpu), batch 8 = 2 per device" in err
  return workdir


def test_train_resumes_by_the_same_command(trained, forks):
  before = everything(trained)
  code, _, err = forks.run("train", f"--workdir={trained}", *TINY)
  assert code == 0, err
  assert "Trained already: step 2" in err
  assert everything(trained) == before


def test_sample_and_evaluate(trained):
  more = ("--config.sampling.w=0.3", f"--workdir={trained}", *TINY)
  out, err = succeed("sample", *more)
  assert "w=0.3 (s=1.3)" in err
  path = pathlib.Path(out.strip())
  with np.load(path) as arrays:
    assert arrays["arr_0"].shape == (22, 4, 4, 1)
  out, _ = succeed("evaluate", f"--samples={path}", *more)
  report = json.loads(out)
  assert {"fd_embedded", "fd_embedded_heldout", "recall"} <= set(
    report["metrics"]
  )
  assert not any("fid" in name for name in report["metrics"])


@pytest.mark.parametrize(
  ("words", "name", "more"),
  [
    (
      "did you mean train.batch_size?",
      "train",
      ["--config.train.batch_sise=3"],
    ),
    ("--config.nonesuch: no such field", "train", ["--config.nonesuch=3"]),
    (
      "must be divisible by the 4 devices",
      "train",
      ["--config.train.batch_size=6"],
    ),
    ("made with another config", "train", ["--config.seed=5"]),
    ("must be at least -1", "sample", ["--config.sampling.w=-1.2"]),
    ("must be at least 2", "sample", ["--config.sampling.T=1"]),
    ("must be in 0..9", "sample", ["--config.sampling.labels=10,"]),
    ("has checkpoints at", "sample", ["--config.sampling.checkpoint_step=9"]),
    ("invalid literal", "sample", ["--config.sampling.T=abc"]),
    (
      "sweep_embedded.py:large: the form 'large' must be :demo or :full",
      "sweep",
      ["--config=configs/sweep_embedded.py:large"],
    ),
    ("for --plan", "sweep", ["--topology=v5p:2x2x1"]),
    ("no such file", "evaluate", ["--samples=none.npz"]),
    ("give --workdir", "evaluate", ["--reference=none.npz"]),
    (
      "attention_resolutions=3: must be among the levels' pixels, 4",
      "train",
      ["--config.model.attention_resolutions=3,"],
    ),
  ],
)
def test_mistakes_end_in_one_line(trained, fail, words, name, more):
  before = everything(trained)
  fail(words, name, f"--workdir={trained}", *TINY, *more)
  assert everything(trained) == before


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("x = 1 / 0", "ZeroDivisionError: division by zero (own.py:1)"),
    ("import nonesuch", "No module named 'nonesuch'"),
    ("def get_config(:", "SyntaxError: invalid syntax"),
    ("\ndef get_config():\n  return unknown", "'unknown' is not defined"),
  ],
)
def test_an_error_in_a_config_file_is_one_line(tmp_path, fail, text, words):
  path = tmp_path / "own.py"
  path.write_text(text)
  shown = words.replace("own.py", os.path.relpath(path, processes.ROOT))
  fail(shown, "train", f"--config={path}", f"--workdir={tmp_path / 'a'}")


def test_a_missing_flag_is_named(fail):
  fail("--workdir: is needed", "train")


def test_a_package_that_hides_the_configs_is_named(tmp_path):
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "__init__.py").touch()
  # As a wheel is installed: an editable installation looks in both places.
  (tmp_path / "sitecustomize.py").write_text(
    "import sys\n"
    "sys.meta_path = [k for k in sys.meta_path if 'Editable' not in str(k)]\n"
  )
  done = subprocess.run(
    [sys.executable, "-m", "experiments.train", "--workdir=a"],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    env=os.environ | {"PYTHONPATH": f"{tmp_path}:{processes.ROOT}"},
    timeout=100,
  )
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith(f"error: {tmp_path}: its package configs/")


def test_documented_configs_are_those_of_the_package(tmp_path, monkeypatch):
  ours = str(processes.ROOT / "configs" / "embedded.py")
  wanted = [f"--config={ours}", "--workdir=a"]
  monkeypatch.chdir(tmp_path)
  for given in (
    ["--config=configs/embedded.py"],
    ["--config=./configs/embedded.py"],
    ["--config", "configs/embedded.py"],
  ):
    assert launcher._installed([*given, "--workdir=a"]) == wanted
  own = tmp_path / "configs" / "embedded.py"
  own.parent.mkdir()
  own.touch()
  given = ["--config=configs/embedded.py"]
  assert launcher._installed(given) == given


def test_a_missing_config_and_a_bad_place_are_named(tmp_path, fail):
  workdir = f"--workdir={tmp_path / 'a'}"
  fail("nope.py: No such file", "train", "--config=configs/nope.py", workdir)
  for name in ("train", "sample", "checkpoints", "figures"):
    fail("must contain none of", name, f"{workdir}[1]")
  assert not everything(tmp_path)


def test_prepare_data_says_where_the_set_is_or_what_is_wrong(tmp_path, fail):
  archives = imagenet_like.write(tmp_path / "archives", train=4, validation=2)
  command = (
    "prepare_data",
    "--dataset=imagenet4",
    f"--manual_dir={archives}",
    f"--data_dir={tmp_path / 'data'}",
  )
  fail("allow_other_archives", *command)
  assert not list((tmp_path / "data").iterdir())
  out, err = succeed(*command, "--allow_other_archives")
  assert "Preparing 6 images" in err
  assert (pathlib.Path(out.strip()) / "dataset_info.json").exists()


def test_checkpoints_are_listed_and_a_damaged_one_is_told(trained, tmp_path):
  shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
  (tmp_path / "checkpoints/2/ema/_METADATA").write_text("")
  code, out, err = processes.run("checkpoints", f"--workdir={tmp_path}")
  assert code == 1
  header, one, two = out.splitlines()
  assert header.split()[0] == "step"
  assert one.split()[0] == "1"
  assert one.endswith("mnist5k-crop24-area4      verified")
  assert "DAMAGED: ema/_METADATA has 0 bytes of" in two
  assert "error: 1 of 2 checkpoints are damaged: steps 2" in err


@pytest.mark.parametrize(
  ("argument", "line"),
  [
    ("train.batch_sise=3", "no such field; did you mean train.batch_size?"),
    ("nothing.like_it", "no such field; configs/base.py has all fields"),
    ("train.flip=1", "no such field; did you mean data.flip?"),
    ("old.name=1", "no such field; use train.steps"),
    ("train.steps=3", None),
    ("train={}", None),
    ("sweep.grids.any.T=3,", None),
  ],
)
def test_an_unknown_field_is_named_with_those_like_it(argument, line):
  renamed = {"old.name": "use train.steps"}
  argv = ["train", "--config=a.py", f"--config.{argument}"]
  field = argument.partition("=")[0]
  wanted = line and f"--config.{field}: {line}"
  assert launcher.unknown_field(argv, renamed) == wanted


@pytest.mark.parametrize("name", ["train", "sweep", "prepare_data"])
def test_help_is_no_failure(name, forks):
  code, out, _ = forks.run(name, "--help")
  assert code == 0
  assert f"python -m experiments.{name}" in out


def test_shards_are_counted_from_one():
  assert launcher.parse_shard("3/16") == (3, 16)
  for text in ("0/3", "4/3", "3", "/3", "a/b", "-1/3"):
    with pytest.raises(errors.UserError, match=f"--shard={text}: must be i/n"):
      launcher.parse_shard(text)


def test_a_missing_checkpoint_or_config_writes_nothing(tmp_path, fail):
  fail("no checkpoint in", "sample", f"--workdir={tmp_path}", *TINY)
  fail("none.py", "train", "--config=configs/none.py", f"--workdir={tmp_path}")
  fail("workdir", "train", *TINY)
  assert not list(tmp_path.iterdir())


def test_a_workdir_that_is_a_file_is_left_alone(tmp_path, fail):
  path = tmp_path / "file"
  path.write_text("mine")
  fail(str(path), "train", f"--workdir={path}", *TINY)
  assert path.read_text() == "mine"


@pytest.mark.slow
def test_a_killed_sweep_is_finished_by_the_same_command(tmp_path):
  command = ("sweep", f"--workdir={tmp_path}", *TINY, *TINY_GRIDS)
  process = processes.start(*command)
  deadline = time.monotonic() + 200
  while not list(tmp_path.glob("cells/*/metrics.json")):
    assert process.poll() is None, process.communicate()[1]
    assert time.monotonic() < deadline
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  done = everything(tmp_path / "cells")
  assert not (tmp_path / "runs/p0.5/config.json").exists()

  out, _ = succeed(*command)
  after = everything(tmp_path / "cells")
  finished = [path for path in done if path.name == "metrics.json"]
  assert finished
  assert all(after[path] == done[path] for path in finished)
  assert len(list(tmp_path.glob("cells/*/metrics.json"))) == 4
  assert f"Report: {tmp_path / 'report.html'}" in out
  assert "| 0.5 (s=1.5) |" in out
