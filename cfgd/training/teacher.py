"""The frozen teacher of a guided student: which one, and its weights."""

from cfgd import build
from cfgd import identity
from cfgd.runtime import checkpoint
from cfgd.runtime import distributed
from cfgd.runtime import errors

# Fields of `model` in which a student may differ from its teacher: they change
# no parameter and no prediction.
_OWN = ("dropout", "remat", "dtype")


def resolved(config, workdir):
  """Return a student's config with what its teacher is; others unchanged.

  A run that has begun keeps the checkpoint that it began with.

  Args:
    config: ConfigDict.
    workdir: of the student's run.

  Raises:
    errors.UserError: there is no teacher, or no student can learn from it.
  """
  if config.task != "guided_student":
    return config
  config = config.copy_and_resolve_references()
  distill = config.distill
  if distributed.by_lead(lambda: _is_not_needed(config, workdir)):
    digest, step = distributed.by_lead(lambda: identity.teacher_of(workdir))
    distill.update({"teacher_model": digest, "teacher_step": step})
    return config
  if not distill.teacher:
    raise errors.UserError(
      "distill.teacher='': must be the workdir of a trained diffusion model "
      "where task='guided_student'"
    )
  _check(config, identity.recorded_config(distill.teacher))
  found = identity.model_digest(config, distill.teacher)
  begun, step = distributed.by_lead(lambda: identity.teacher_of(workdir))
  wanted = distill.teacher_model or begun
  if wanted not in ("", found):
    raise errors.UserError(
      f"distill.teacher={distill.teacher}: the model there is {found}, the "
      f"teacher of {workdir} is {wanted}"
    )
  distill.teacher_model = found
  if distill.teacher_step != -1:
    step = distill.teacher_step
  elif step != -1 and step not in checkpoint.steps(distill.teacher):
    raise errors.UserError(
      f"distill.teacher={distill.teacher}: {workdir} learns from its "
      f"checkpoint {step}, which no longer exists; use another --workdir, and "
      "keep the teacher's checkpoint by its train.keep_every"
    )
  distill.teacher_step = checkpoint.find_step(
    distill.teacher, step, field="distill.teacher_step"
  )
  return config


def _is_not_needed(config, workdir):
  """Return whether a student is done and its teacher's folder is gone."""
  if identity.is_run(config.distill.teacher):
    return False
  steps = checkpoint.steps(workdir)
  return bool(steps) and steps[-1] >= config.train.steps


def _check(config, theirs):
  """Refuse a teacher from whose weights the student cannot start."""
  folder = config.distill.teacher
  if theirs.task != "diffusion":
    raise errors.UserError(
      f"distill.teacher={folder}: a {theirs.task} network; a teacher is a "
      "diffusion model"
    )
  p_uncond = theirs.diffusion.p_uncond
  if not 0 < p_uncond < 1:
    raise errors.UserError(
      f"distill.teacher={folder} was trained with diffusion.p_uncond="
      f"{p_uncond:g}: a teacher guides itself, which needs a value between 0 "
      "and 1"
    )
  identity.require_shared(config, theirs, f"distill.teacher={folder}")
  for name, ours in config.model.items():
    if name not in _OWN and ours != theirs.model[name]:
      raise errors.UserError(
        f"distill.teacher={folder} was trained with model.{name}="
        f"{theirs.model[name]!r}, the student has {ours!r}: they must agree"
      )


def params(config):
  """Return the averaged weights of a resolved config's teacher."""
  distill = config.distill
  shapes = build.param_shapes(build.teacher_config(config))
  return checkpoint.read_params(
    distill.teacher, distill.teacher_step, shapes, "ema"
  )


def student_params(config, fresh):
  """Return the parameters that a student starts from: its teacher's.

  Args:
    config: resolved ConfigDict.
    fresh: parameters of the student's network, for what only it has: at first w
      changes nothing.
  """
  return fresh | params(config)
