"""Orbax checkpoints: the train state, its averaged weights and metadata.

A checkpoint has three items: `state` (everything but the average), `ema` (the
averaged parameters, readable alone) and `meta` (JSON). Orbax writes under a
temporary name and renames, so a killed save never looks like a checkpoint. Just
before the rename all files are read back and recorded in manifest.json; a
restore verifies them, and falls back to the previous checkpoint where one is
damaged. Old checkpoints without a manifest are read unverified.
"""

import contextlib
import json
from typing import NamedTuple

from absl import logging
from etils import epath
import jax
import orbax.checkpoint as ocp

from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import manifest

_FOLDER = "checkpoints"
_ITEMS = ("state", "ema", "meta")
_DAMAGED = ".damaged"
_DELETED = ".deleted-"
_UNFINISHED = "*orbax-checkpoint-tmp*"
_UNVERIFIED = "no manifest: not verified"


class _Sealing(ocp.CompositeCheckpointHandler):
  """Write the manifest of all items just before the final rename."""

  def finalize(self, directory):
    super().finalize(directory)
    manifest.write(directory, _ITEMS)


@ocp.args.register_with_handler(_Sealing, for_save=True, for_restore=True)
class _Items(ocp.args.Composite):
  """The items of a checkpoint by name."""


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
    self._keep = keep
    self._keep_every = keep_every
    self._keep_first = keep_first
    self._saving = None
    newest = None
    if distributed.is_lead():
      self._folder.mkdir(parents=True, exist_ok=True)
      newest = self._tidy()
    # -1 for none: processes agree on numbers.
    self._newest = distributed.agree(-1 if newest is None else newest)
    self._orbax = ocp.AsyncCheckpointer(_Sealing())

  def _tidy(self):
    """Remove leftovers, set damaged ones aside, return the newest good step."""
    for pattern in (_UNFINISHED, _DELETED + "*"):
      for leftover in self._folder.glob(pattern):
        leftover.rmtree()
    found, good = steps(self._workdir), find_good(self._workdir)
    if found and good is None:
      raise errors.RunError(
        f"all checkpoints in {self._folder} are damaged: restore one from a "
        "copy, or delete them to start over"
      )
    for step in found:
      if step > good:
        _set_aside(self._folder / str(step))
    return good

  def save(self, state, meta):
    """Save a TrainState asynchronously, with a dict of strings and numbers.

    Raises errors.RunError if the previous save failed. The state may be donated
    as soon as this returns.
    """
    self._finish()
    # Host copies: several processes cannot save pmap's process-local arrays.
    state = jax.device_get(state)
    items = _Items(
      state=ocp.args.StandardSave(_without_ema(state)),
      ema=ocp.args.StandardSave(state.ema_params),
      meta=ocp.args.JsonSave(meta),
    )
    self._saving = int(state.step)
    with self._named_errors():
      self._orbax.save(self._folder / str(self._saving), args=items)

  def check(self):
    """Raise the error of the save in progress, if it has failed."""
    with self._named_errors():
      self._orbax.check_for_errors()

  def _finish(self):
    """Wait for the save in progress; only then delete old checkpoints."""
    with self._named_errors():
      self._orbax.wait_until_finished()
    if self._saving is not None:
      self._newest, self._saving = self._saving, None
      if distributed.is_lead():
        self._remove_old()

  @contextlib.contextmanager
  def _named_errors(self):
    try:
      yield
    except errors.Preempted:
      raise
    except Exception as error:
      good = "none" if self._newest < 0 else f"step {self._newest}"
      failed, self._saving = self._saving, None
      raise errors.RunError(
        f"the checkpoint at step {failed} of {self._workdir} could not "
        f"be written ({type(error).__name__}: {errors.first_line(error)}); the "
        f"last good one: {good}"
      ) from error

  def _remove_old(self):
    found = steps(self._workdir)
    kept = {*found[: self._keep_first], *found[-self._keep :]}
    if self._keep_every:
      kept |= {step for step in found if step % self._keep_every == 0}
    for step in set(found) - kept:
      _delete(self._folder / str(step))

  def restore_newest(self, like, meta=None):
    """Return the newest good checkpoint's state as NumPy arrays, or None.

    Args:
      like: TrainState of the wanted structure, shapes and dtypes.
      meta: entries that the checkpoint's `meta` must have, if it has them.
    """
    step = self.newest_step()
    if step is None:
      return None
    path = self._folder / str(step)
    _check_meta(path, meta or {})
    like = jax.device_get(like)
    items = self._orbax.restore(
      path,
      args=_Items(
        state=ocp.args.StandardRestore(_without_ema(like)),
        ema=ocp.args.StandardRestore(like.ema_params),
      ),
    )
    logging.info("Resuming from the checkpoint at step %d.", step)
    return like.replace(**items["state"], ema_params=items["ema"])

  def newest_step(self):
    """Return the step of the newest good checkpoint or None."""
    return None if self._newest < 0 else self._newest

  def newest_meta(self):
    """Return the `meta` of the newest good checkpoint, {} without one."""
    step = self.newest_step()
    return {} if step is None else _read_meta(self._folder / str(step))

  def close(self):
    """Wait for the last save and raise its error, if any."""
    self._finish()
    self._orbax.close()


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


def _without_ema(state):
  names = ("step", "skipped", "params", "opt_state")
  return {name: getattr(state, name) for name in names}


def _folder_of(workdir):
  return epath.Path(workdir).absolute() / _FOLDER


def _set_aside(path):
  """Rename a damaged checkpoint, so that its step can be saved again."""
  aside = path.parent / (path.name + _DAMAGED)
  if aside.exists():
    aside.rmtree()
  path.rename(aside)
  logging.warning("%s was renamed to %s; you may delete it.", path, aside.name)


def _delete(path):
  """Delete a checkpoint; renamed first, so that a kill leaves no half of it."""
  doomed = path.parent / (_DELETED + path.name)
  path.rename(doomed)
  doomed.rmtree()


def _read_meta(path):
  return json.loads((path / "meta" / "metadata").read_text())


def _check_meta(path, wanted):
  recorded = _read_meta(path)
  for name, value in wanted.items():
    if recorded.get(name) not in ("", None, value):
      raise errors.UserError(
        f"{path} was made with {name} {recorded[name]!r}, this run has "
        f"{value!r}: use another --workdir or the same settings"
      )


def _fault(path, items=()):
  """Return what is damaged in a checkpoint; None if nothing, or unknown."""
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
    if (path / manifest.NAME).exists():
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

  `field` is the config field of `step`, for messages.
  """
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

  Args:
    workdir: folder of the run.
    step: one of `steps`.
    like: tree of the wanted structure, shapes and dtypes.
    weights: "ema" or "raw".
  """
  path = _folder_of(workdir) / str(step)
  item = {"ema": "ema", "raw": "state"}[weights]
  fault = _fault(path, (item,))
  if fault:
    raise errors.RunError(
      f"{path} is damaged ({fault}): choose another checkpoint_step"
    )
  if weights == "ema":
    with ocp.StandardCheckpointer() as checkpointer:
      return checkpointer.restore(path / item, like)
  target = {"params": like}
  with ocp.PyTreeCheckpointer() as checkpointer:
    restored = checkpointer.restore(
      path / item,
      args=ocp.args.PyTreeRestore(
        item=target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
      ),
    )
  return restored["params"]
