"""Orbax checkpoints: the train state, its averaged weights and metadata.

A checkpoint has three items: `state` (everything but the average), `ema` (the
averaged parameters, readable alone) and `meta` (JSON). Process 0 alone writes
and reads them, and sends what it read to the others. Orbax makes a checkpoint
appear whole, also in a bucket. On disks, all files are read back before that
and recorded in manifest.json; a restore verifies them, and falls back to the
previous checkpoint where one is damaged. Object stores keep checksums
themselves. Checkpoints without a manifest are read unverified.
"""

import contextlib
import functools
import json
import time
from typing import NamedTuple

from absl import logging
from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import files
from cfgd.runtime import manifest

_FOLDER = "checkpoints"
_SAVE_SECONDS = 600.0
_ITEMS = ("state", "ema", "meta")
_DAMAGED = ".damaged"
_UNVERIFIED = "no manifest: not verified"
_IN_BUCKET = "checksums of the bucket"


class _FirstN(checkpoint_managers.PreservationPolicy):
  """Keep the n oldest checkpoints."""

  def __init__(self, n):
    self._n = n

  def should_preserve(self, checkpoints, *, context):
    del context
    return [index < self._n for index in range(len(checkpoints))]


class Checkpointer:
  """Save and restore the checkpoints of one workdir, one at a time."""

  def __init__(self, workdir, *, keep, keep_every, keep_first=0):
    """Open or create `workdir`/checkpoints.

    Removes the leftovers of killed saves and sets aside damaged checkpoints
    that are newer than the newest good one. Of the others it keeps the `keep`
    newest, the `keep_first` oldest and, unless it is 0, multiples of
    `keep_every`.
    """
    self._workdir = workdir
    self._folder = _folder_of(workdir)
    self._manager = None  # of process 0
    self._saving = None
    policies = [
      checkpoint_managers.LatestN(keep),
      _FirstN(keep_first),
      *([checkpoint_managers.EveryNSteps(keep_every)] if keep_every else []),
    ]
    self._newest = distributed.by_lead(lambda: self._open(policies))

  def _open(self, policies):
    """Tidy the folder; return the newest good step, None without one."""
    newest = self._set_damaged_aside()
    self._folder.mkdir(parents=True, exist_ok=True)
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        create=False,  # which process 0 alone may not ask for
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        multiprocessing_options=_alone(),
      ),
    )
    return newest

  def _set_damaged_aside(self):
    """Rename damaged checkpoints, so that their steps can be saved again."""
    found, good = steps(self._workdir), find_good(self._workdir)
    if found and good is None:
      raise errors.RunError(
        f"all checkpoints in {self._folder} are damaged: restore one from a "
        "copy, or delete them to start over"
      )
    for step in found:
      if step > good:
        path = self._folder / str(step)
        aside = self._folder / (path.name + _DAMAGED)
        if aside.exists():
          aside.rmtree()
        path.rename(aside)
        logging.warning(
          "%s was renamed to %s; you may delete it.", path, aside.name
        )
    return good

  def _seal(self):
    """Write the manifest of all items just before the final rename."""
    if files.in_bucket(self._folder):
      return
    (unfinished,) = self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*")
    manifest.write(unfinished, _ITEMS)

  def save(self, state, meta):
    """Save a TrainState asynchronously, with a dict of strings and numbers.

    Raises errors.RunError if the previous save failed. The state may be donated
    as soon as this returns.
    """
    self._finish()
    self._saving = int(state.step)
    if not distributed.is_lead():
      return
    state = jax.device_get(state)
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(_without_ema(state)),
      ema=ocp.args.StandardSave(state.ema_params),
      meta=ocp.args.JsonSave(meta),
    )
    with self._named_errors():
      self._manager.save(self._saving, args=items, force=True)

  def check(self):
    """Raise the error of the save in progress, if it has failed."""
    if self._manager and not self._manager.is_saving_in_progress():
      self._finish()

  def _finish(self):
    """Wait for the save in progress."""
    with self._named_errors():
      if self._manager:
        self._wait()
    if self._saving is not None:
      self._newest, self._saving = self._saving, None

  def _wait(self):
    """Wait for Orbax, which tries for hours where a store does not answer."""
    deadline = time.monotonic() + _SAVE_SECONDS
    while self._manager.is_saving_in_progress():
      if time.monotonic() > deadline:
        self._manager = None  # its threads never end
        raise TimeoutError(f"not done after {_SAVE_SECONDS:g} s")
      time.sleep(0.01)
    self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _named_errors(self):
    try:
      yield
    except Exception as error:
      good = "none" if self._newest is None else f"step {self._newest}"
      failed, self._saving = self._saving, None
      kind = errors.Outage if files.is_outage(error) else errors.RunError
      raise kind(
        f"the checkpoint at step {failed} of {self._workdir} could not "
        f"be written ({type(error).__name__}: {errors.first_line(error)}); the "
        f"last good one: {good}"
      ) from error

  def restore_newest(self, like, meta=None):
    """Return the newest good checkpoint's state as NumPy arrays, or None.

    Args:
      like: TrainState of the wanted structure, shapes and dtypes.
      meta: entries that the checkpoint's `meta` must have, if it has them.
    """
    step = self.newest_step()
    if step is None:
      return None
    like = jax.device_get(like)
    wanted = {"state": _without_ema(like), "ema": like.ema_params}
    distributed.by_lead(lambda: self._check_meta(meta or {}))
    items = {k: ocp.args.StandardRestore(v) for k, v in wanted.items()}
    restored = _by_lead(
      lambda: dict(
        self._manager.restore(step, args=ocp.args.Composite(**items)).items()
      ),
      wanted,
    )
    logging.info("Resuming from the checkpoint at step %d.", step)
    return like.replace(**restored["state"], ema_params=restored["ema"])

  def _check_meta(self, wanted):
    path = self._folder / str(self._newest)
    recorded = _read_meta(path)
    for name, value in wanted.items():
      if recorded.get(name) not in ("", None, value):
        raise errors.UserError(
          f"{path} was made with {name} {recorded[name]!r}, this run has "
          f"{value!r}: use another --workdir or the same settings"
        )

  def newest_step(self):
    """Return the step of the newest good checkpoint or None."""
    return self._newest

  def newest_meta(self):
    """Return the `meta` of the newest good checkpoint, {} without one."""
    if self._newest is None:
      return {}
    path = self._folder / str(self._newest)
    return distributed.by_lead(lambda: _read_meta(path))

  def close(self):
    """Wait for the last save and raise its error, if any."""
    self._finish()
    if self._manager:
      self._manager.close()


class Found(NamedTuple):
  """A checkpoint as `inspect` reports it.

  Attributes:
    size: in bytes; None if unknown.
    fault: what is damaged, or None.
    state: "verified", or why it could not be verified.
  """

  step: int
  size: int | None
  meta: dict
  fault: str | None
  state: str


def _alone():
  """Return Orbax's options for process 0 working alone."""
  options = ocp.options.MultiprocessingOptions
  if jax.process_count() == 1:
    return options()
  return options(active_processes={0}, barrier_sync_key_prefix="lead")


def _by_lead(read, like):
  """Return process 0's read(), a tree as `like`, in all processes."""
  tree = distributed.in_all(read if distributed.is_lead() else lambda: None)
  return distributed.broadcast(tree, like)


def _without_ema(state):
  names = ("step", "skipped", "params", "opt_state")
  return {name: getattr(state, name) for name in names}


def _folder_of(workdir):
  path = epath.Path(workdir)
  return (path if files.in_bucket(path) else path.absolute()) / _FOLDER


def _read_meta(path):
  return json.loads((path / "meta" / "metadata").read_text())


def _fault(path, items=()):
  """Return what is damaged in a checkpoint; None if nothing, or unknown."""
  if files.in_bucket(path):
    return None
  if not (path / manifest.NAME).exists():
    logging.warning("%s has %s.", path, _UNVERIFIED)
    return None
  return manifest.fault(path, items)


def steps(workdir):
  """Return the steps of the complete checkpoints in a workdir, increasing."""
  folder = _folder_of(workdir)
  if not folder.exists():
    return []
  return sorted(
    int(path.name)
    for path in folder.iterdir()
    if path.name.isdigit() and ocp.utils.is_checkpoint_finalized(path)
  )


def inspect(workdir):
  """Yield a Found for each checkpoint, reading all of its files."""
  for step in steps(workdir):
    path = _folder_of(workdir) / str(step)
    fault, size, state = None, None, _UNVERIFIED
    if files.in_bucket(path):
      state = _IN_BUCKET
    elif (path / manifest.NAME).exists():
      fault, state = manifest.fault(path), "verified"
      size = None if fault else manifest.size(path)
    try:
      meta = _read_meta(path)
    except (OSError, ValueError):
      meta = {}
    yield Found(step, size, meta, fault, state)


def find_good(workdir, items=()):
  """Return the step of the newest undamaged checkpoint, or None.

  Verifies only `items` if they are given.
  """
  for step in reversed(steps(workdir)):
    path = _folder_of(workdir) / str(step)
    fault = _fault(path, items)
    if fault is None:
      return step
    logging.warning("%s is damaged (%s): using an older one.", path, fault)
  return None


def find_step(workdir, step, field="sampling.checkpoint_step"):
  """Return `step` if it is saved; for -1 the newest undamaged one.

  Process 0 looks, and all processes get what it found.

  Args:
    workdir: folder of the run.
    step: or -1.
    field: the config field of `step`, for messages.
  """
  return distributed.by_lead(lambda: _find_step(workdir, step, field))


def _find_step(workdir, step, field):
  found = steps(workdir)
  newest = find_good(workdir, ("ema",)) if step == -1 else None
  if not found or (step == -1 and newest is None):
    raise errors.UserError(
      f"no {'undamaged ' if found else ''}checkpoint in "
      f"{epath.Path(workdir) / _FOLDER}: train first with the same --config "
      "and --workdir"
    )
  if step == -1:
    return newest
  if step not in found:
    raise errors.UserError(
      f"{field}={step}: {workdir} has checkpoints at "
      f"{', '.join(map(str, found))}"
    )
  return step


def read_params(workdir, step, like, weights):
  """Return the parameters of one checkpoint as NumPy arrays.

  Process 0 reads and verifies them, once for all cells of a sweep.

  Args:
    workdir: folder of the run.
    step: one of `steps`.
    like: tree of the wanted structure, shapes and dtypes.
    weights: "ema" or "raw".
  """
  path = _folder_of(workdir) / str(step)

  def read():
    written = (path / "meta" / "metadata").stat().mtime
    leaves, structure = jax.tree.flatten(like)
    shapes = tuple((leaf.shape, np.dtype(leaf.dtype).name) for leaf in leaves)
    return _read_params(str(path), written, structure, shapes, weights)

  return _by_lead(read, like)


# A sweep's model and its guiding network.
@functools.lru_cache(maxsize=2)
def _read_params(path, written, structure, shapes, weights):
  del written  # part of the key: another checkpoint may replace this one
  path = epath.Path(path)
  item = {"ema": "ema", "raw": "state"}[weights]
  fault = _fault(path, (item,))
  if fault:
    raise errors.RunError(
      f"{path} is damaged ({fault}): choose another checkpoint_step"
    )
  like = jax.tree.unflatten(
    structure, [np.broadcast_to(np.zeros((), d), shape) for shape, d in shapes]
  )
  target = like if weights == "ema" else {"params": like}
  with ocp.Checkpointer(
    ocp.PyTreeCheckpointHandler(multiprocessing_options=_alone()),
    multiprocessing_options=_alone(),
  ) as checkpointer:
    restored = checkpointer.restore(
      path / item,
      args=ocp.args.PyTreeRestore(
        item=target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=weights == "raw",
      ),
    )
  return restored if weights == "ema" else restored["params"]
