"""Import published weights as the first checkpoint of a run."""

from absl import logging

from cfgd import build
from cfgd import identity
from cfgd import validation
from cfgd.convert import guided_diffusion
from cfgd.runtime import checkpoint
from cfgd.runtime import errors
from cfgd.training import state as state_lib


def import_checkpoint(config, workdir, source):
  """Write a guided-diffusion .pt as the checkpoint at step 0 of a new run.

  Sampling, evaluation and fine-tuning read it like one that was trained here.

  Args:
    config: ConfigDict of the model, such as configs/adm_imagenet64.py.
    workdir: folder without checkpoints.
    source: path of the .pt.

  Raises:
    errors.UserError: a bad file, other keys or shapes than the config's
      network has, or a workdir that is in use.
  """
  validation.validate(config, num_devices=1)
  if config.model.condition != "all":
    raise errors.UserError(
      f"model.condition={config.model.condition!r}: published weights see the "
      "label in all blocks; use 'all'"
    )
  identity.claim_workdir(config, workdir, write=False)
  if checkpoint.steps(workdir):
    raise errors.UserError(f"{workdir} has checkpoints: use another --workdir")
  params = guided_diffusion.to_flax(
    guided_diffusion.read(source), build.param_shapes(config), path=source
  )
  identity.claim_workdir(config, workdir, write=True)
  state = state_lib.create(params, build.optimizer(config))
  checkpoints = checkpoint.Checkpointer(
    workdir, keep=config.train.keep, keep_every=config.train.keep_every
  )
  checkpoints.save(
    state,
    {
      "config": identity.model_digest(config, workdir),
      "preprocessing": "",
      "imported_from": str(source),
    },
  )
  checkpoints.close()
  logging.info("Imported %s into %s.", source, workdir)
