"""OpenAI's published ImageNet 64x64 model, 64x64_diffusion.pt (ADM).

Conditional, without a null label, so w=0. Its learned sigma gives v per pixel.

  python -m experiments.import_checkpoint --model=adm_imagenet64
      --source=64x64_diffusion.pt --workdir=DIR
  python -m experiments.sample --config=configs/adm_imagenet64.py --workdir=DIR
"""

from configs import imagenet64


def get_config():
  """Return the paper's network as ADM trained it."""
  config = imagenet64.get_config()
  config.model.null_row = False
  config.model.learn_sigma = True
  config.diffusion.p_uncond = 0.0
  config.diffusion.timesteps = "adm_cosine"
  # The ends of ADM's schedule, rounded inwards.
  config.diffusion.logsnr_min = -19.83
  config.diffusion.logsnr_max = 10.09
  config.sampling.w = 0.0
  # The steps of its published samples.
  config.sampling.grid = "adm"
  config.sampling.T = 250
  config.sweep.grids.main.p_uncond = (0.0,)
  config.sweep.grids.main.T = (250,)
  config.sweep.grids.main.w = (0.0,)
  return config
