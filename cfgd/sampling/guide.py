"""The guiding network of a method: a noisy classifier, or a weaker model."""

from typing import Any
from typing import NamedTuple

from cfgd import build
from cfgd import identity
from cfgd import methods
from cfgd.runtime import checkpoint
from cfgd.runtime import errors

# Fields in which the guiding network must agree with the model.
_SHARED = (
  *("data.image_size", "data.channels", "data.num_classes"),
  *("diffusion.timesteps", "diffusion.logsnr_min", "diffusion.logsnr_max"),
)


class Guide(NamedTuple):
  """A trained guiding network: its config, its workdir, its checkpoint."""

  config: Any
  workdir: Any
  step: int

  def params(self, weights):
    """Read its parameters, "ema" or "raw"."""
    shapes = build.param_shapes(self.config)
    return checkpoint.read_params(self.workdir, self.step, shapes, weights)

  def identity(self):
    """Return what samples depend on of it, for their settings."""
    model = identity.model_digest(self.config, self.workdir)
    return {"model": model, "checkpoint_step": self.step}


def find(config, workdir):
  """Return the Guide of `sampling.guidance`, None for a method without one.

  Args:
    config: ConfigDict of the model that is sampled.
    workdir: of that model's run.

  Raises:
    errors.UserError: there is none, it is another kind of network, or it was
      trained for other images, classes or noise levels than the model.
  """
  sampling = config.sampling
  task = methods.METHODS[sampling.guidance].guide
  if not task:
    return None
  folder = sampling.guide_dir or workdir
  theirs = identity.recorded_config(folder)
  step = checkpoint.find_step(
    folder, sampling.guide_step, field="sampling.guide_step"
  )
  if theirs.task != task:
    raise errors.UserError(
      f"sampling.guide_dir={folder}: a {theirs.task} network, but "
      f"sampling.guidance='{sampling.guidance}' needs a {task} network"
    )
  ours, other = identity.fields(config), identity.fields(theirs)
  for field in _SHARED:
    if ours[field] != other[field]:
      raise errors.UserError(
        f"sampling.guide_dir={folder} was trained with {field}="
        f"{other[field]!r}, the model with {ours[field]!r}: they must agree"
      )
  return Guide(theirs, folder, step)
