"""ImageNet 64x64, Table 1 of the paper: FID 1.55 at w=0.1, p_uncond=0.1.

295.9 M parameters, batch 2048, 400k steps (819 M images). The paper's three
models are p_uncond 0.1, 0.2 and 0.5.

  python -m experiments.train --config=configs/imagenet64.py --workdir=DIR
"""

from configs import base


def get_config():
  """Return the overrides for 64x64, the size of the base config."""
  config = base.get_config()
  config.data.source = "imagenet64"
  config.sweep.grids.main.p_uncond = (0.1, 0.2, 0.5)
  config.sweep.title = "ImageNet 64x64"
  return config
