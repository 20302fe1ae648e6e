"""Trained networks: the model that is sampled, and the one that guides it."""

from typing import Any
from typing import NamedTuple

from cfgd import build
from cfgd import identity
from cfgd import methods
from cfgd.runtime import checkpoint
from cfgd.runtime import distributed
from cfgd.runtime import errors


class Trained(NamedTuple):
  """A checkpoint of a run: its config, its workdir, its step."""

  config: Any
  workdir: Any
  step: int

  def params(self, weights):
    """Read its parameters, "ema" or "raw"."""
    shapes = build.param_shapes(self.config)
    return checkpoint.read_params(self.workdir, self.step, shapes, weights)


def find(config, workdir):
  """Return the model, and the guiding network that its method needs or None.

  Args:
    config: ConfigDict of the model.
    workdir: of its run.

  Raises:
    errors.UserError: there is no checkpoint, or the guiding network is of
      another kind, or was trained for other images, classes or noise levels.
  """
  sampling = config.sampling
  step = checkpoint.find_step(workdir, sampling.checkpoint_step)
  model = Trained(config, workdir, step)
  task = methods.METHODS[sampling.guidance].guide
  if not task:
    return model, None
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
  identity.require_shared(config, theirs, f"sampling.guide_dir={folder}")
  return model, Trained(theirs, folder, step)


def sampler(model, guide):
  """Return (index [n], label [n]) -> images [n, H, W, C] uint8, all finite.

  Args:
    model: Trained.
    guide: Trained, or None.
  """
  sampling = model.config.sampling
  params = tuple(
    each and each.params(sampling.weights) for each in (model, guide)
  )
  params = distributed.replicate_locally(params)
  draw = build.sampler(model.config, guide and guide.config)
  distributed.in_all(lambda: draw.check_places(params))

  def sample(index, label):
    images, finite = draw(params, index, label)
    if not finite.all():
      raise errors.NonFiniteError(
        f"{(~finite).sum()} of {len(index)} samples are not finite (first: "
        f"image {index[~finite][0]}) at sampling.w={sampling.w}, "
        f"T={sampling.T}, checkpoint {model.step} of {model.workdir}"
      )
    return images

  return sample
