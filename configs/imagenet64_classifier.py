"""The noisy classifier for 64x64 classifier guidance, trained as in ADM.

65.4 M parameters, AdamW, batch 1024, 300k steps (307 M images): Table 12 of
Dhariwal & Nichol (arXiv:2105.05233).

  python -m experiments.prepare_data --dataset=imagenet64 --random_crop=0.8
      --manual_dir=ARCHIVES
  python -m experiments.train --config=configs/imagenet64_classifier.py
      --workdir=DIR
"""

from configs import imagenet64


def get_config():
  """Return the overrides of the 64x64 model for its classifier."""
  config = as_classifier(imagenet64.get_config(), num_res_blocks=4)
  config.data.random_crop = 0.8
  config.optim.learning_rate = 6e-4
  config.optim.weight_decay = 0.2
  config.train.batch_size = 1024
  return config


def as_classifier(config, *, num_res_blocks):
  """Turn a diffusion model's config into that of its classifier in ADM.

  Data, levels and noise schedule stay. The optimiser is that of ADM's 128x128
  classifier.

  Args:
    config: of the diffusion model.
    num_res_blocks: ADM's classifier_depth.
  """
  config.task = "classifier"
  config.model.model_channels = 128
  config.model.num_res_blocks = num_res_blocks
  config.model.num_head_channels = 64
  config.model.new_attention_order = False
  config.model.dropout = 0.0
  config.model.null_row = False
  config.model.learn_sigma = False
  config.diffusion.p_uncond = 0.0
  config.optim.learning_rate = 3e-4
  config.optim.weight_decay = 0.05
  config.optim.decay_steps = 300_000
  config.optim.decay = "linear"
  config.optim.ema_decay = 0.0
  config.train.batch_size = 256
  config.train.steps = 300_000
  config.train.sample_every = 10_000
  config.sampling.w = 0.0
  return config
