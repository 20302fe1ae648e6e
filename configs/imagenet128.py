"""ImageNet 128x128, Table 2 of the paper: FID 2.43 at w=0.3, T=256.

421.5 M parameters, batch 256, 2.7 M steps (691 M images). The paper does not
state p_uncond for this model; 0.1 is the best of its 64x64 models.

  python -m experiments.train --config=configs/imagenet128.py --workdir=DIR
"""

from configs import base


def get_config():
  """Return the overrides for 128x128."""
  config = base.get_config()
  config.data.source = "imagenet128"
  config.data.image_size = 128
  config.model.model_channels = 256
  config.model.channel_mult = (1, 1, 2, 3, 4)
  config.model.num_res_blocks = 2
  config.model.num_heads = 4
  config.model.num_head_channels = 0
  config.model.new_attention_order = False
  config.model.dropout = 0.0
  config.optim.learning_rate = 1e-4
  config.train.batch_size = 256
  config.train.steps = 2_700_000
  config.sampling.w = 0.3
  config.sampling.v = 0.2
  config.sampling.batch_size = 64
  config.sweep.grids.main.T = (128, 256, 1024)
  return config
