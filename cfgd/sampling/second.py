"""The second network of guidance: a noisy classifier, or a weaker model."""

from cfgd import config as config_lib
from cfgd import networks
from cfgd.runtime import checkpoint
from cfgd.runtime import errors

# What the second network must share with the model, by field.
_SHARED = (
  *("data.image_size", "data.channels", "data.num_classes"),
  *("diffusion.timesteps", "diffusion.logsnr_min", "diffusion.logsnr_max"),
)


def find(config, workdir):
  """Return (its config, its folder, its checkpoint's step), or None.

  Args:
    config: ConfigDict of the model that is sampled.
    workdir: folder of that model's run.

  Raises:
    errors.UserError: there is none, or it is another kind of network, or for
      other images, classes or noise levels than the model's.
  """
  task = config_lib.second_network(config)
  if task is None:
    return None
  folder = config.sampling.second_dir or workdir
  recorded = config_lib.read_recorded(folder)
  step = checkpoint.find_step(
    folder, config.sampling.second_step, field="sampling.second_step"
  )
  theirs = config_lib.from_dict(recorded)
  if theirs.task != task:
    raise errors.UserError(
      f"sampling.second_dir={folder}: a {theirs.task} network, where "
      f"sampling.guidance='{config.sampling.guidance}' needs a {task} one"
    )
  for field in _SHARED:
    ours, other = (config_lib.get(c, field) for c in (config, theirs))
    if ours != other:
      raise errors.UserError(
        f"sampling.second_dir={folder} was trained with {field}={other!r}, the "
        f"model with {ours!r}: they must agree"
      )
  return theirs, folder, step


def read_params(found, weights):
  """Read the parameters that `find` found, "ema" or "raw"."""
  config, folder, step = found
  return checkpoint.read_params(
    folder, step, networks.param_shapes(config), weights
  )


def describe(found):
  """Return what samples depend on of it, for their settings."""
  if found is None:
    return None
  config, folder, step = found
  model = config_lib.model_digest(config, folder)
  return {"model": model, "checkpoint_step": step}
