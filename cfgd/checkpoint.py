"""Checkpoints through Orbax: train state, averaged weights, and what they are.

A checkpoint has three items: `state` (all but the average), `ema` (the averaged
parameters, readable alone) and `meta` (JSON). Orbax writes to a temporary name
and renames, so a killed save leaves nothing that looks like a checkpoint.
"""

from absl import logging
from etils import epath
import jax
import orbax.checkpoint as ocp

from cfgd import errors

_FOLDER = "checkpoints"


class Checkpointer:
  """Saves and restores the checkpoints of one workdir."""

  def __init__(self, workdir, *, keep, keep_every):
    """Open or make `workdir`/checkpoints.

    Args:
      workdir: folder of the run.
      keep: number of newest checkpoints that stay.
      keep_every: steps whose multiples stay for good; 0 for none.
    """
    self._manager = ocp.CheckpointManager(
      epath.Path(workdir).absolute() / _FOLDER,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        keep_period=keep_every or None,
        cleanup_tmp_directories=True,
      ),
    )

  def save(self, state, meta):
    """Save asynchronously; an error of the previous save is raised here.

    Args:
      state: TrainState on device; it may be donated as soon as this returns.
      meta: dict of strings and numbers.
    """
    # Host copies: several processes cannot save pmap's process-local arrays.
    state = jax.device_get(state)
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(_without_ema(state)),
      ema=ocp.args.StandardSave(state.ema_params),
      meta=ocp.args.JsonSave(meta),
    )
    self._manager.save(int(state.step), args=items, force=True)

  def restore_newest(self, like):
    """Read the newest complete checkpoint.

    Args:
      like: TrainState of the wanted structure, shapes and dtypes.

    Returns:
      TrainState of NumPy arrays, or None where there is no checkpoint.
    """
    step = self._manager.latest_step()
    if step is None:
      return None
    like = jax.device_get(like)
    items = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(_without_ema(like)),
        ema=ocp.args.StandardRestore(like.ema_params),
      ),
    )
    logging.info("Resuming from the checkpoint at step %d.", step)
    return like.replace(**items["state"], ema_params=items["ema"])

  def newest_step(self):
    """Return the step of the newest complete checkpoint or None."""
    return self._manager.latest_step()

  def close(self):
    """Wait for the last save; raise what went wrong with it."""
    self._manager.wait_until_finished()
    self._manager.check_for_errors()
    self._manager.close()


def _without_ema(state):
  return {
    "step": state.step,
    "skipped": state.skipped,
    "params": state.params,
    "opt_state": state.opt_state,
  }


def steps(workdir):
  """Return the steps of the complete checkpoints in a workdir, increasing."""
  folder = epath.Path(workdir).absolute() / _FOLDER
  if not folder.exists():
    return []
  return sorted(ocp.utils.checkpoint_steps(folder))


def find_step(workdir, step, field="sampling.checkpoint_step"):
  """Return `step`, or the newest one for -1.

  Args:
    workdir: folder of the run.
    step: that is wanted.
    field: that says so, for messages.

  Raises:
    errors.UserError: there is no such checkpoint.
  """
  found = steps(workdir)
  if not found:
    raise errors.UserError(
      f"no checkpoint in {epath.Path(workdir) / _FOLDER}: train first with the "
      "same --config and --workdir"
    )
  if step == -1:
    return found[-1]
  if step not in found:
    raise errors.UserError(
      f"{field}={step}: {workdir} has checkpoints at "
      f"{', '.join(map(str, found))}"
    )
  return step


def read_params(workdir, step, like, weights):
  """Read the parameters of one checkpoint without its optimizer state.

  Args:
    workdir: folder of the run.
    step: a step of `steps`.
    like: tree of the wanted structure, shapes and dtypes.
    weights: "ema" or "raw".

  Returns:
    Tree of NumPy arrays.
  """
  item = epath.Path(workdir).absolute() / _FOLDER / str(step)
  if weights == "ema":
    with ocp.StandardCheckpointer() as checkpointer:
      return checkpointer.restore(item / "ema", like)
  target = {"params": like}
  with ocp.PyTreeCheckpointer() as checkpointer:
    restored = checkpointer.restore(
      item / "state",
      args=ocp.args.PyTreeRestore(
        item=target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
      ),
    )
  return restored["params"]
