"""Fine-tune OpenAI's conditional 64x64 model for classifier-free guidance.

Starts from the imported weights with a zero null label and trains with label
dropout. Only eps is trained, so samples use the constant variance.

  python -m experiments.train --config=configs/finetune_imagenet64.py
      --config.train.init_from=IMPORTED --workdir=DIR
"""

from configs import adm_imagenet64


def get_config():
  """Return the overrides of the imported model for fine-tuning."""
  config = adm_imagenet64.get_config()
  config.model.null_row = True
  config.diffusion.p_uncond = 0.1
  config.optim.learning_rate = 1e-4
  config.train.batch_size = 256
  config.train.steps = 50_000
  config.sampling.w = 0.1
  config.sampling.grid = "uniform_u"
  config.sampling.T = 256
  # The trunk is trained for eps alone, so the variance head drifts.
  config.sampling.v_from = "config"
  config.sweep.grids.main.p_uncond = (0.1,)
  config.sweep.grids.main.T = (256,)
  config.sweep.grids.main.w = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 4.0)
  return config
