"""The disturbances: each stage runs jobs, disturbs them and compares."""

import dataclasses
import pathlib
import random
import shutil
import signal
import subprocess
import time

import numpy as np

from cfgd.runtime import checkpoint
from cfgd.runtime import errors
from tests import tiny
from tests.faults import jobs as jobs_lib
from tests.faults import outcomes

_KILLS_PER_RUN = 6
_SIGNALS = (signal.SIGKILL, signal.SIGTERM)
_FULL_MEGABYTES = 10  # three checkpoints, and a half
_FILE_LIMIT = 200_000  # bytes, less than a checkpoint's largest file
TINY = tiny.TINY | {
  "train.steps": 100,
  "train.checkpoint_every": 10,
  "sampling.num_samples": 40,
  "sampling.batch_size": 5,
  "sampling.chunk_size": 10,
  "metrics.feature_net.steps": 40,
}
SWEEP = TINY | {
  "train.steps": 30,
  "sweep.grids.main.p_uncond": (0.1, 0.5),
  "sweep.grids.main.T": (3,),
  "sweep.grids.main.w": (0.0, 0.5),
  "sweep.grids.fast.T": (2,),
  "sweep.grids.fast.w": (0.0, 0.5),
}
_NUM_CELLS = 6
# The embedded model as configs/ has it. Losses of two layouts differ by the
# order of sums, and training amplifies that: within 20 steps to 3e-5 in TINY,
# whose Adam starts at its full rate with batches of 8, to below 1e-6 here.
AS_SHIPPED = {
  "train.steps": 20,
  "train.log_every": 1,
  "train.sample_every": 0,
  "sampling.num_samples": 40,
  "sampling.batch_size": 5,
  "sampling.chunk_size": 10,
}


@dataclasses.dataclass
class Chaos:
  """What all stages share."""

  folder: pathlib.Path
  rng: random.Random
  tally: outcomes.Tally = dataclasses.field(default_factory=outcomes.Tally)

  def finish(self, name, workdir, overrides, **options):
    """Run an entry point to its end, which must be a good one."""
    job = jobs_lib.Job(name, workdir, overrides, **options)
    code = job.wait()
    self.tally.expect(code == 0, f"{name} ended with {code}: {job.error}")
    return job

  def resume(self, workdir, overrides, reference):
    """Finish a disturbed training and compare it with an undisturbed one."""
    job = self.finish("train", workdir, overrides)
    self.tally.add_start(job)
    self.compare(workdir, overrides, reference)
    return job

  def compare(self, workdir, overrides, reference):
    """Compare a training's final state with an undisturbed one's."""
    state = outcomes.final_state(workdir, overrides)
    equal = outcomes.same(state, reference.state)
    self.tally.compare(workdir.name, equal)


@dataclasses.dataclass
class Reference:
  """An undisturbed training and how long its parts took."""

  state: list
  start_seconds: float
  step_seconds: float


def undisturbed(chaos):
  """Train without a disturbance."""
  workdir = chaos.folder / "undisturbed"
  job = chaos.finish("train", workdir, TINY)
  seconds = time.monotonic() - job.first_step
  state = outcomes.final_state(workdir, TINY)
  return Reference(state, job.seconds_to_step, seconds)


def kill_training(chaos, reference, kills):
  """Kill trainings until `kills` signals have met a running one."""
  tally = chaos.tally
  wanted = tally.kills + kills
  while tally.kills < wanted:
    workdir = chaos.folder / f"train{tally.runs}"
    limit = min(wanted, tally.kills + _KILLS_PER_RUN)
    while tally.kills < limit and _kill_somewhere(
      chaos, jobs_lib.Job("train", workdir, TINY), reference
    ):
      pass
    chaos.resume(workdir, TINY, reference)
    shutil.rmtree(workdir)


def _kill_somewhere(chaos, job, reference):
  """Kill a job at a random moment; return whether it was unfinished."""
  tally, number = chaos.tally, chaos.rng.choice(_SIGNALS)
  if chaos.rng.random() < 0.2:  # anywhere, mostly before the first step
    seconds = reference.start_seconds
  else:
    job.wait_for_step()
    seconds = reference.step_seconds
  hit = job.kill(number, chaos.rng.uniform(0, seconds))
  code = job.wait()
  tally.add_start(job)
  tally.kills += hit
  # Before its handler is installed, SIGTERM ends a process at once.
  allowed = {0, -number}
  if number == signal.SIGTERM:
    allowed.add(errors.EXIT_AGAIN)
  tally.expect(code in allowed, f"{number.name}: code {code}: {job.error}")
  return hit and code != 0


def damage_checkpoints(chaos, reference):
  """Change, cut, or remove a file of the newest checkpoint, each once."""
  for how in ("flip", "truncate", "remove"):
    workdir = chaos.folder / f"damaged_{how}"
    job = jobs_lib.Job("train", workdir, TINY)
    job.wait_for_step()
    job.kill(signal.SIGTERM, reference.step_seconds / 2)
    job.wait()
    newest = workdir / "checkpoints" / str(checkpoint.steps(workdir)[-1])
    _damage(newest, how, chaos.rng)
    job = chaos.resume(workdir, TINY, reference)
    noticed = any("is damaged" in line for line in job.lines)
    chaos.tally.expect(noticed, f"{how}: not noticed")
    shutil.rmtree(workdir)


def _damage(path, how, rng):
  files = [file for file in path.glob("*/**/*") if file.is_file()]
  file = rng.choice([file for file in files if file.stat().st_size])
  if how == "remove":
    file.unlink()
    return
  data = bytearray(file.read_bytes())
  if how == "flip":
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  else:
    del data[rng.randrange(len(data)) :]
  file.write_bytes(data)


def fill_disk(chaos, reference):
  """Train where checkpoints do not fit, then make room; returns by what."""
  place = chaos.folder / "small"
  place.mkdir()
  small = TINY | {"train.keep": 9}
  size = f"size={_FULL_MEGABYTES}m"
  mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", place]
  mounted = subprocess.run(mount, capture_output=True).returncode == 0
  workdir = place / "full disk"
  try:
    # Without the right to mount: files may not grow beyond a limit.
    job = jobs_lib.Job(
      "train", workdir, small, limit=None if mounted else _FILE_LIMIT
    )
    code = job.wait()
    told = [line for line in job.lines if line.startswith("error:")]
    good = code == 1 and len(told) == 1 and "could not be written" in told[0]
    chaos.tally.expect(good, f"disk full: {code}: {told}")
    if mounted:
      more = ["mount", "-o", "remount,size=256m", place]
      subprocess.run(more, check=True)
    chaos.resume(workdir, small, reference)
  finally:
    if mounted:
      subprocess.run(["umount", place], check=True)
  return "tmpfs" if mounted else "file size limit"


def kill_one_of_two(chaos, kills):
  """Kill one of two processes; the other must end, and both resume.

  Returns:
    Seconds until the survivor ended, of each kill.
  """
  tally, overrides = chaos.tally, TINY | {"train.steps": 20}
  jobs = _run_pair(chaos, "train", chaos.folder / "pair", overrides)
  seconds = time.monotonic() - jobs[0].first_step
  state = outcomes.final_state(chaos.folder / "pair", overrides)
  reference = Reference(state, 0, seconds)
  ends = []
  for number in range(kills):
    workdir = chaos.folder / f"pair{number}"
    jobs = jobs_lib.start_pair("train", workdir, overrides)
    dead = number % 2
    jobs[dead].wait_for_step()
    delay = chaos.rng.uniform(0, seconds / 2)
    tally.kills += jobs[dead].kill(signal.SIGKILL, delay)
    begin = time.monotonic()
    code = jobs[1 - dead].wait(jobs_lib.PEER_SECONDS + 60)
    ends.append(round(time.monotonic() - begin, 1))
    # When process 0 dies, JAX itself aborts the other.
    wanted = errors.EXIT_AGAIN if dead else -signal.SIGABRT
    tally.expect(code == wanted, f"the survivor ended with {code}")
    jobs[dead].wait()
    _run_pair(chaos, "train", workdir, overrides)
    chaos.compare(workdir, overrides, reference)
  return ends


def _run_pair(chaos, name, workdir, overrides):
  jobs = jobs_lib.start_pair(name, workdir, overrides)
  codes = [job.wait() for job in jobs]
  chaos.tally.expect(codes == [0, 0], f"pair: {codes}: {jobs[0].error}")
  return jobs


def compare_layouts(chaos):
  """Train and sample as 2 processes x 2 devices and as 1 x 4.

  Returns:
    Dict of the largest relative difference of 20 losses and the number of
    samples that differ.
  """
  folder, four = chaos.folder, jobs_lib.devices(4)
  _run_pair(chaos, "train", folder / "two", AS_SHIPPED)
  chaos.finish("train", folder / "one", AS_SHIPPED, env=four)
  two, one = (outcomes.losses(folder / name) for name in ("two", "one"))
  # The same weights, sampled by both.
  shutil.copytree(folder / "one", folder / "copy")
  _run_pair(chaos, "sample", folder / "copy", AS_SHIPPED)
  chaos.finish("sample", folder / "one", AS_SHIPPED, env=four)
  copy, images = (outcomes.images(folder / name) for name in ("copy", "one"))
  differ = (copy != images).any(axis=(1, 2, 3))
  result = {
    "losses": len(one),
    "largest_relative_difference": float(np.max(np.abs(two - one) / one)),
    "samples": len(differ),
    "differing_samples": int(differ.sum()),
  }
  same_losses = result["largest_relative_difference"] < 1e-5 and len(one) == 20
  chaos.tally.expect(same_losses and not differ.any(), str(result))
  return result


def kill_sweeps(chaos, kills):
  """Kill sweeps, alone and two at a time, and compare their tables."""
  tally = chaos.tally
  begin = time.monotonic()
  chaos.finish("sweep", chaos.folder / "sweep", SWEEP)
  seconds = time.monotonic() - begin
  reference, _ = outcomes.table(chaos.folder / "sweep")
  tally.expect(len(reference) == _NUM_CELLS, f"cells: {sorted(reference)}")
  wanted = tally.kills + kills
  while tally.kills < wanted:
    workdir, written = chaos.folder / f"sweep{tally.runs}", {}
    limit = min(wanted, tally.kills + _KILLS_PER_RUN)
    going = True
    while going and tally.kills < limit:
      going = _kill_sweep(chaos, workdir, seconds)
      tally.doubled += outcomes.count_rewritten(workdir, written)
    chaos.finish("sweep", workdir, SWEEP)
    tally.doubled += outcomes.count_rewritten(workdir, written)
    _compare_tables(tally, workdir, reference)
    shutil.rmtree(workdir)


def _kill_sweep(chaos, workdir, seconds):
  """Kill one of one or two jobs; return whether all are unfinished."""
  tally = chaos.tally
  jobs = [jobs_lib.Job("sweep", workdir, SWEEP)]
  if chaos.rng.random() < 0.25:
    jobs.append(jobs_lib.Job("sweep", workdir, SWEEP))
  number = chaos.rng.choice(_SIGNALS)
  hit = jobs[0].kill(number, chaos.rng.uniform(0, seconds))
  tally.kills += hit
  codes = [job.wait() for job in jobs]
  allowed = {0, -number, errors.EXIT_AGAIN}
  tally.expect(codes[0] in allowed, f"{codes}: {jobs[0].error}")
  tally.expect(not any(codes[1:]), f"{codes}: {jobs[-1].error}")
  return hit and 0 not in codes


def _compare_tables(tally, workdir, reference):
  rows, doubled = outcomes.table(workdir)
  tally.doubled += doubled
  tally.lost += len(set(reference) - set(rows))
  for cell, row in rows.items():
    if row != reference.get(cell):
      tally.divergences.append(f"{workdir.name}: {cell}")
  tally.compare(workdir.name, equal=True)
