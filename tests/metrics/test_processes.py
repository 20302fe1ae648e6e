"""Scoring in two processes that share a folder, or believe that they do."""

import json
import re

import pytest

from cfgd.metrics import fid
from tests.metrics import test_fid
from tests.runtime import test_distributed

network = test_fid.network  # for the process of the test

# Of two processes, each with a cache of its own; small chunks make 4 rounds.
PROGRAM = """
import json, os, signal, sys, time
from etils import epath
import jax
from cfgd.convert import inception as weights
from cfgd.metrics import collect, fid
from cfgd.models import inception
from cfgd.runtime import distributed, errors, preemption
from tests.metrics import test_fid

distributed.initialize(join_seconds=120, peer_seconds=100)
preemption.install()
inception.NUM_FEATURES = test_fid.FEATURES
inception.NUM_SPATIAL = test_fid.SPATIAL
inception.scorer = lambda protocol: test_fid._stand_in
weights.load = lambda path, cache_dir: (test_fid._weights(path), "inception-x")
me, folder = jax.process_index(), epath.Path(sys.argv[1])
config = test_fid.make_config(folder / f"cache{me}")
config.metrics.chunk_size = 8
samples, real = str(folder / "samples.npz"), str(folder / "real.npz")

def score():
  try:
    return fid.evaluate(config, samples, real)
  except (Exception, errors.Preempted) as error:
    return f"{type(error).__name__}: {error}"

run = collect._run
"""


def write_images(folder):
  test_fid.save(folder / "samples.npz", test_fid.draw(1, 50, high=200))
  test_fid.save(folder / "real.npz", test_fid.draw(0, 70))


def run_two(body, folder, *arguments):
  """Return what the two processes print, as JSON."""
  ends = test_distributed.run_two(PROGRAM + body, str(folder), *arguments)
  assert [code for code, _, _ in ends] == [0, 0], ends
  return [json.loads(lines[-1]) for _, lines, _ in ends]


def test_two_processes_score_as_one(tmp_path):
  write_images(tmp_path)
  lead, other = run_two("print(json.dumps(score()))", tmp_path)
  assert lead == other
  config = test_fid.make_config(tmp_path / "alone")
  (tmp_path / "samples.adm.metrics.json").unlink()
  names = [str(tmp_path / name) for name in ("samples.npz", "real.npz")]
  alone = fid.evaluate(config, *names)
  assert lead["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)
  # What two have made is where both see it.
  assert len(list(tmp_path.glob("reference-*.npz"))) == 1
  assert not list(tmp_path.glob("cache*"))
  assert not list(tmp_path.glob("*.part"))


FAILS = """
def fail(*arguments):
  if me == 1 and list(folder.glob("samples*.part/rows_*")):
    raise errors.NonFiniteError("feature 3")
  return run(*arguments)

collect._run = fail
first = score()
collect._run = run
print(json.dumps([first, score()]))
"""


def test_an_error_of_one_process_ends_both_and_they_go_on(tmp_path):
  write_images(tmp_path)
  (lead, then), (other, same) = run_two(FAILS, tmp_path)
  assert lead == other == "NonFiniteError: feature 3"
  assert then == same
  assert then["metrics"]["fid50"] > 0


STOPPED = """
def stop(*arguments):
  if me == 1 and list(folder.glob("reference*.part/rows_*")):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)
  return run(*arguments)

collect._run = stop
config.metrics.chunk_size = 4
print(json.dumps([score(), len(list(folder.glob("*.part/rows_*")))]))
"""


def test_sigterm_is_answered_after_a_chunk(tmp_path):
  write_images(tmp_path)
  (lead, parts), (other, _) = run_two(STOPPED, tmp_path)
  for said in (lead, other):
    assert said.startswith("Preempted: ended by SIGTERM: ")
    assert "chunks of features are in" in said
  assert 0 < parts < 18


APART = """
samples = str(folder / f"{me}/samples.npz")
print(json.dumps(score()))
"""


def test_folders_that_are_not_the_same_are_told(tmp_path):
  write_images(tmp_path)
  for process in "01":
    (tmp_path / process).mkdir()
    test_fid.save(
      tmp_path / process / "samples.npz", test_fid.draw(1, 50, high=200)
    )
  lead, other = run_two(APART, tmp_path)
  assert lead == other
  assert re.match(
    r"RunError: .*/1/reference-\w+\.part: process 1 of 2 does not find there "
    "what process 0 writes: put it on a disk that all share",
    lead,
  )
