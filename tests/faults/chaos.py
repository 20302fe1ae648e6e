"""Disturb trainings and sweeps, and compare with what runs undisturbed.

  python -m tests.faults.chaos --kills=50 --json=DIR/chaos.json

Everything runs as a user runs it, in processes of its own, on a model of the
embedded digits that is small enough to be started a hundred times: killed at
random moments by SIGKILL and SIGTERM, with a full disk, with a damaged
checkpoint, with one of two processes dead, with two jobs on one sweep. What
comes out must be the same to the last bit. Exit code 1 where it is not.
"""

import argparse
import contextlib
import csv
import dataclasses
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import jax
import numpy as np

from cfgd import build
from cfgd.runtime import checkpoint
from cfgd.runtime import errors
from cfgd.training import state as state_lib
from configs import sweep_embedded

_ROOT = pathlib.Path(__file__).parent.parent
_TIMEOUT = 600
_KILLS_PER_RUN = 6
_STEP = re.compile(r"\[(\d+)\] .*loss=")
_FULL_MEGABYTES = 10  # three checkpoints, and a half
_PEER_SECONDS = 10
# Starting is most of the work: keep small compiled programs too.
_CACHE_ALL = {
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
# The embedded sweep at the smallest size that has all its parts.
TINY = {
  "data.image_size": 4,
  "model.channel_mult": (1,),
  "model.attention_resolutions": (4,),
  "optim.warmup_steps": 1,
  "train.batch_size": 8,
  "train.steps": 100,
  "train.log_every": 1,
  "train.checkpoint_every": 10,
  "train.sample_every": 0,
  "sampling.T": 3,
  "sampling.num_samples": 40,
  "sampling.batch_size": 5,
  "sampling.chunk_size": 10,
  "metrics.num_splits": 2,
  "metrics.feature_net.width": 4,
  "metrics.feature_net.num_features": 8,
  "metrics.feature_net.steps": 40,
}
_SWEEP = {
  "train.steps": 30,
  "sweep.grids.main.T": (3,),
  "sweep.grids.main.w": (0.0, 0.5, 1.0),
  "sweep.grids.p_uncond.T": (3,),
  "sweep.grids.p_uncond.w": (0.0, 0.5),
  "sweep.grids.T.T": (2,),
  "sweep.grids.T.w": (0.5,),
}
# The embedded model as configs/ has it. Losses of two layouts differ by the
# order of sums, and training amplifies that: within 20 steps to 3e-5 in TINY,
# whose Adam starts at its full rate with batches of 8, to below 1e-6 here.
_AS_SHIPPED = {
  "train.steps": 20,
  "train.log_every": 1,
  "train.sample_every": 0,
  "sampling.num_samples": 40,
  "sampling.batch_size": 5,
  "sampling.chunk_size": 10,
}


@dataclasses.dataclass
class Tally:
  """What was done and what came of it."""

  kills: int = 0
  runs: int = 0
  divergences: list = dataclasses.field(default_factory=list)
  lost: int = 0
  doubled: int = 0
  surprises: list = dataclasses.field(default_factory=list)
  seconds_to_step: list = dataclasses.field(default_factory=list)

  def expect(self, condition, what):
    """Note what was not as it should be."""
    if not condition:
      self.surprises.append(what)

  def report(self):
    """Return it as JSON has it."""
    plain = dataclasses.asdict(self)
    seconds = plain.pop("seconds_to_step")
    plain["resumes"] = len(seconds)
    plain["median_seconds_to_first_resumed_step"] = (
      round(statistics.median(seconds), 2) if seconds else None
    )
    return plain


class Job:
  """A command under way; its standard error is read as it comes."""

  def __init__(self, name, workdir, overrides, *more, env=None, limit=None):
    """Start `python -m experiments.NAME`.

    Args:
      name: of the entry point.
      workdir: folder.
      overrides: {field: value}.
      *more: flags.
      env: variables beside this process's; by default for one device.
      limit: bytes that a file may have; None for any.
    """
    self.begin = time.monotonic()
    self.first_step = None
    self.lines = []
    limits = limit and (
      lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    self.process = subprocess.Popen(
      [
        *(sys.executable, "-m", f"experiments.{name}"),
        f"--workdir={workdir}",
        *(f"--config.{k}={_text(v)}" for k, v in overrides.items()),
        *more,
      ],
      cwd=_ROOT,
      env=os.environ | _CACHE_ALL | (env or _devices(1)),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
      preexec_fn=limits,
    )
    self._reader = threading.Thread(target=self._read, daemon=True)
    self._reader.start()

  def _read(self):
    for line in self.process.stderr:
      self.lines.append(line)
      if self.first_step is None and _STEP.search(line):
        self.first_step = time.monotonic()

  def wait(self, timeout=_TIMEOUT):
    """Return the exit code."""
    try:
      code = self.process.wait(timeout)
    except subprocess.TimeoutExpired:
      self.process.kill()
      code = self.process.wait()
      self.lines.append(f"chaos: killed after {timeout} s\n")
    self._reader.join()
    return code

  def wait_for_step(self):
    """Return whether a step was taken before the end."""
    while self.first_step is None and self.process.poll() is None:
      time.sleep(0.01)
    return self.first_step is not None

  def kill(self, number, delay):
    """Send a signal after a delay; return whether anyone was there."""
    with contextlib.suppress(subprocess.TimeoutExpired):
      self.process.wait(delay)
    if self.process.poll() is not None:
      return False
    self.process.send_signal(number)
    return True

  @property
  def error(self):
    """The last lines of standard error."""
    return "".join(self.lines[-5:]).strip()


def _text(value):
  if isinstance(value, tuple):
    return ",".join(map(str, value)) + ("," if len(value) == 1 else "")
  return str(value)


def make_config(overrides):
  """Return the embedded sweep's config with {field: value}."""
  config = sweep_embedded.get_config()
  config.update_from_flattened_dict(overrides)
  return config


def final_state(workdir, overrides):
  """Return (step, skipped, parameters, average, moments) as NumPy leaves."""
  config = make_config(overrides)
  shapes = build.param_shapes(config)
  like = state_lib.create(
    jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes),
    build.optimizer(config),
  )
  checkpoints = checkpoint.Checkpointer(workdir, keep=9, keep_every=0)
  with contextlib.closing(checkpoints):
    return jax.tree.leaves(checkpoints.restore_newest(like))


def same(one, other):
  """Say whether two states are equal to the last bit."""
  return len(one) == len(other) and all(
    a.dtype == b.dtype and np.array_equal(a, b)
    for a, b in zip(one, other, strict=True)
  )


@dataclasses.dataclass
class Reference:
  """An undisturbed training, and how long its parts took."""

  state: list
  start_seconds: float
  step_seconds: float


def undisturbed(workdir, overrides, tally):
  """Train without a disturbance."""
  job = Job("train", workdir, overrides)
  tally.expect(job.wait() == 0, f"undisturbed training: {job.error}")
  seconds = time.monotonic() - job.first_step
  state = final_state(workdir, overrides)
  return Reference(state, job.first_step - job.begin, seconds)


def _finish(name, workdir, overrides, tally, *more):
  """Let a job run to its end; return it."""
  job = Job(name, workdir, overrides, *more)
  code = job.wait()
  tally.expect(code == 0, f"{name} ended with {code}: {job.error}")
  if name == "train" and job.first_step:
    tally.seconds_to_step.append(job.first_step - job.begin)
  return job


def _compare(what, workdir, overrides, reference, tally):
  tally.runs += 1
  _say(f"{what}: {tally.kills} kills so far")
  if not same(final_state(workdir, overrides), reference.state):
    tally.divergences.append(what)


def kill_training(folder, overrides, reference, kills, rng, tally):
  """Kill trainings until `kills` signals have met one under way."""
  wanted = tally.kills + kills
  while tally.kills < wanted:
    workdir = folder / f"train{tally.runs}"
    here = min(_KILLS_PER_RUN, wanted - tally.kills)
    before = tally.kills
    while tally.kills < before + here:
      job = Job("train", workdir, overrides)
      if not _kill_somewhere(job, reference, rng, tally):
        break
    _finish("train", workdir, overrides, tally)
    _compare(workdir.name, workdir, overrides, reference, tally)
    shutil.rmtree(workdir)


def _kill_somewhere(job, reference, rng, tally):
  """Kill a job at a random moment; return whether it was not done by then."""
  number = rng.choice([signal.SIGKILL, signal.SIGTERM])
  if rng.random() < 0.2:  # anywhere, mostly before the first step
    hit = job.kill(number, rng.uniform(0, reference.start_seconds))
  else:
    job.wait_for_step()
    hit = job.kill(number, rng.uniform(0, reference.step_seconds))
  code = job.wait()
  if job.first_step:
    tally.seconds_to_step.append(job.first_step - job.begin)
  tally.kills += hit
  asked = number == signal.SIGTERM
  # Before the handler is there, SIGTERM ends a process at once.
  allowed = {0, -number, errors.EXIT_AGAIN if asked else -number}
  tally.expect(code in allowed, f"{number.name}: code {code}: {job.error}")
  return hit and code != 0


def damage_checkpoint(folder, overrides, reference, rng, tally):
  """Change, cut, or remove a file of the newest checkpoint, each once."""
  for how in ("flip", "truncate", "remove"):
    workdir = folder / f"damaged_{how}"
    job = Job("train", workdir, overrides)
    job.wait_for_step()
    job.kill(signal.SIGTERM, reference.step_seconds / 2)
    job.wait()
    newest = workdir / "checkpoints" / str(checkpoint.steps(workdir)[-1])
    _damage(newest, how, rng)
    job = _finish("train", workdir, overrides, tally)
    tally.expect(
      any("is damaged" in line for line in job.lines), f"{how}: not noticed"
    )
    _compare(workdir.name, workdir, overrides, reference, tally)
    shutil.rmtree(workdir)


def _damage(path, how, rng):
  chosen = [file for file in path.glob("*/**/*") if file.is_file()]
  file = rng.choice([file for file in chosen if file.stat().st_size])
  data = bytearray(file.read_bytes())
  if how == "flip":
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  elif how == "truncate":
    del data[rng.randrange(len(data)) :]
  if how == "remove":
    file.unlink()
  else:
    file.write_bytes(data)


def fill_disk(folder, overrides, reference, tally):
  """Train where checkpoints do not fit, then make room."""
  place = folder / "small"
  place.mkdir()
  small = dict(overrides, **{"train.keep": 9})
  size = f"size={_FULL_MEGABYTES}m"
  mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", place]
  mounted = subprocess.run(mount, capture_output=True).returncode == 0
  workdir = place / "full"
  try:
    # Without the right to mount: files may not grow beyond a limit.
    job = Job("train", workdir, small, limit=None if mounted else 200_000)
    code = job.wait()
    said = [line for line in job.lines if line.startswith("error:")]
    tally.expect(code == 1 and len(said) == 1, f"disk full: {code}: {said}")
    tally.expect(
      said and "could not be written" in said[0], f"disk full: {said}"
    )
    if mounted:
      more = ["mount", "-o", "remount,size=256m", place]
      subprocess.run(more, check=True)
    _finish("train", workdir, small, tally)
    _compare("disk full", workdir, small, reference, tally)
  finally:
    if mounted:
      subprocess.run(["umount", place], check=True)
  return "tmpfs" if mounted else "file size limit"


def free_port():
  """Return a port that nobody listens at."""
  with socket.socket() as server:
    server.bind(("localhost", 0))
    return server.getsockname()[1]


def start_pair(name, workdir, overrides, devices=2):
  """Start two processes of some virtual devices each."""
  port = free_port()
  return [
    Job(
      *(name, workdir, overrides),
      f"--peer_seconds={_PEER_SECONDS}",
      env=_devices(devices)
      | {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(process),
      },
    )
    for process in range(2)
  ]


def _devices(count):
  flag = f"--xla_force_host_platform_device_count={count}"
  return {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}


def _run_pair(workdir, overrides, tally, name="train"):
  jobs = start_pair(name, workdir, overrides)
  codes = [job.wait() for job in jobs]
  tally.expect(codes == [0, 0], f"pair: {codes}: {jobs[0].error}")
  return jobs


def kill_one_of_two(folder, overrides, kills, rng, tally):
  """Kill one of two processes; the other must end, and both resume."""
  overrides = dict(overrides, **{"train.steps": 20})
  jobs = _run_pair(folder / "pair", overrides, tally)
  seconds = time.monotonic() - jobs[0].first_step
  reference = Reference(final_state(folder / "pair", overrides), 0, seconds)
  ends = []
  for number in range(kills):
    workdir = folder / f"pair{number}"
    jobs = start_pair("train", workdir, overrides)
    dead = number % 2
    jobs[dead].wait_for_step()
    tally.kills += jobs[dead].kill(signal.SIGKILL, rng.uniform(0, seconds / 2))
    begin = time.monotonic()
    code = jobs[1 - dead].wait(_PEER_SECONDS + 60)
    ends.append(round(time.monotonic() - begin, 1))
    # The end of process 0 is answered by JAX, which aborts.
    wanted = errors.EXIT_AGAIN if dead else -signal.SIGABRT
    tally.expect(code == wanted, f"the survivor ended with {code}")
    jobs[dead].wait()
    _run_pair(workdir, overrides, tally)
    _compare(workdir.name, workdir, overrides, reference, tally)
  return ends


def compare_layouts(folder, overrides, tally):
  """Train and sample as 2 processes x 2 devices and as 1 x 4.

  Returns:
    Dict of the largest relative difference of 20 losses and the number of
    differing samples.
  """
  _run_pair(folder / "two", overrides, tally)
  job = Job("train", folder / "one", overrides, env=_devices(4))
  tally.expect(job.wait() == 0, f"1 x 4: {job.error}")
  two, one = (losses(folder / name) for name in ("two", "one"))
  # The same weights, sampled by both.
  shutil.copytree(folder / "one", folder / "copy")
  _run_pair(folder / "copy", overrides, tally, name="sample")
  job = Job("sample", folder / "one", overrides, env=_devices(4))
  tally.expect(job.wait() == 0, f"1 x 4: {job.error}")
  images = []
  for name in ("copy", "one"):
    (path,) = (folder / name).glob("samples/*/samples_*.npz")
    images.append(np.load(path)["arr_0"])
  differ = (images[0] != images[1]).any(axis=(1, 2, 3))
  result = {
    "losses": len(one),
    "largest_relative_difference": float(np.max(np.abs(two - one) / one)),
    "samples": len(differ),
    "differing_samples": int(differ.sum()),
  }
  tally.expect(result["largest_relative_difference"] < 1e-5, str(result))
  tally.expect(not differ.any() and len(one) == 20, str(result))
  return result


def losses(workdir):
  """Return the losses of a run's TensorBoard events, by step."""
  # TensorBoard's import takes seconds and is needed here alone.
  from tensorboard.backend.event_processing import event_accumulator
  from tensorboard.util import tensor_util

  # By default it keeps ten of them.
  events = event_accumulator.EventAccumulator(
    str(workdir), size_guidance={event_accumulator.TENSORS: 0}
  )
  events.Reload()
  scalars = [event.tensor_proto for event in events.Tensors("loss")]
  return np.array([tensor_util.make_ndarray(scalar) for scalar in scalars])


def results(workdir):
  """Return (rows of results.csv by id, number of rows that double another).

  All but the row of real images, which is no cell's, and the seconds that a
  cell took: those differ from run to run.
  """
  path = workdir / "results.csv"
  if not path.exists():
    return {}, 0
  with path.open() as file:
    rows = [row for row in csv.DictReader(file) if row["w"]]
  for row in rows:
    del row["seconds"]
  by_id = {row["id"]: row for row in rows}
  return by_id, len(rows) - len(by_id)


def kill_sweep(folder, overrides, kills, rng, tally):
  """Kill sweeps, alone and two at a time, and compare their tables."""
  begin = time.monotonic()
  _finish("sweep", folder / "sweep", overrides, tally)
  seconds = time.monotonic() - begin
  reference, _ = results(folder / "sweep")
  tally.expect(len(reference) == 6, f"cells: {sorted(reference)}")
  wanted = tally.kills + kills
  while tally.kills < wanted:
    workdir = folder / f"sweep{tally.runs}"
    written = {}
    before = tally.kills
    while tally.kills < min(wanted, before + _KILLS_PER_RUN):
      jobs = [Job("sweep", workdir, overrides)]
      if rng.random() < 0.25:
        jobs.append(Job("sweep", workdir, overrides))
      number = rng.choice([signal.SIGKILL, signal.SIGTERM])
      hit = jobs[0].kill(number, rng.uniform(0, seconds))
      tally.kills += hit
      codes = [job.wait() for job in jobs]
      allowed = {0, -number, errors.EXIT_AGAIN}
      tally.expect(codes[0] in allowed, f"{codes}: {jobs[0].error}")
      tally.expect(not any(codes[1:]), f"{codes}: {jobs[-1].error}")
      tally.doubled += _rewritten(workdir, written)
      if not hit or 0 in codes:
        break
    _finish("sweep", workdir, overrides, tally)
    tally.doubled += _rewritten(workdir, written)
    _compare_tables(workdir, reference, tally)
    shutil.rmtree(workdir)


def _rewritten(workdir, written):
  """Count results that were there before and have changed; note all."""
  count = 0
  for path in workdir.glob("cells/*/metrics.json"):
    stamp = path.stat().st_mtime_ns
    count += written.get(path, stamp) != stamp
    written[path] = stamp
  return count


def _compare_tables(workdir, reference, tally):
  tally.runs += 1
  _say(f"{workdir.name}: {tally.kills} kills so far")
  rows, doubled = results(workdir)
  tally.doubled += doubled
  tally.lost += len(set(reference) - set(rows))
  for cell, row in rows.items():
    if row != reference.get(cell):
      tally.divergences.append(f"{workdir.name}: {cell}")


def run(folder, kills, seed):
  """Do everything; return the report."""
  rng = random.Random(seed)
  tally = Tally()
  in_sweeps, in_pairs = kills // 4, max(1, kills // 25)
  in_trainings = kills - in_sweeps - in_pairs
  reference = undisturbed(folder / "undisturbed", TINY, tally)
  stages = {
    "killed_trainings": lambda: kill_training(
      folder, TINY, reference, in_trainings, rng, tally
    ),
    "damaged_checkpoints": lambda: damage_checkpoint(
      folder, TINY, reference, rng, tally
    ),
    "full_disk_by": lambda: fill_disk(folder, TINY, reference, tally),
    "killed_sweeps": lambda: kill_sweep(
      folder, TINY | _SWEEP, in_sweeps, rng, tally
    ),
    "seconds_until_survivor_ended": lambda: kill_one_of_two(
      folder, TINY, in_pairs, rng, tally
    ),
    "two_by_two_against_one_by_four": lambda: compare_layouts(
      folder, _AS_SHIPPED, tally
    ),
  }
  found = {}
  for name, stage in stages.items():
    _say(f"{name}: {tally.kills} kills, {tally.runs} runs so far")
    try:
      found[name] = stage()
    except Exception as error:  # of one stage: the others still count
      traceback.print_exc()
      tally.surprises.append(f"{name}: {type(error).__name__}: {error}")
  return tally.report() | {
    "seed": seed,
    "seconds_to_first_step_undisturbed": round(reference.start_seconds, 2),
    **{name: value for name, value in found.items() if value is not None},
  }


def _say(what):
  print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def main(argv):
  """Run, print, write JSON; return the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--kills", type=int, default=50)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--folder", help="scratch; default: a temporary one")
  parser.add_argument("--json", help="file to write")
  options = parser.parse_args(argv)
  with tempfile.TemporaryDirectory(dir=options.folder) as folder:
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/cache")
    report = run(pathlib.Path(folder), options.kills, options.seed)
  text = json.dumps(report, indent=2)
  print(text)
  if options.json:
    pathlib.Path(options.json).write_text(text + "\n")
  wrong = ("divergences", "lost", "doubled", "surprises")
  return int(any(report[name] for name in wrong))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
