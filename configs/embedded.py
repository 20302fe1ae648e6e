"""The embedded data: 4,000 real digits at 10x10, minutes on two CPU cores.

0.83 M parameters. The data and training are too small to support claims about
images, but code and guidance are those of ImageNet.

  python -m experiments.train --config=configs/embedded.py --workdir=DIR
"""

from configs import base


def as_small(config):
  """Give a config a model and optimiser that two CPU cores train in minutes.

  Attention is at half the image size; the caller sets the number of steps.
  """
  config.data.channels = 1
  config.data.num_classes = 10
  config.data.threads = 2
  config.model.model_channels = 32
  config.model.channel_mult = (1, 2)
  config.model.num_res_blocks = 1
  config.model.attention_resolutions = (config.data.image_size // 2,)
  config.model.num_head_channels = 0
  config.model.dropout = 0.0
  config.model.dtype = "float32"
  config.optim.learning_rate = 2e-3
  config.optim.b2 = 0.99
  config.optim.warmup_steps = 20
  config.optim.ema_warmup = True
  config.train.batch_size = 64
  config.sampling.w = 0.3
  config.sampling.batch_size = 125
  config.sampling.chunk_size = 500


def get_config():
  """Return the overrides for the embedded data."""
  config = base.get_config()
  config.data.source = "embedded"
  config.data.image_size = 10
  config.data.crop = 24
  config.data.flip = False
  as_small(config)
  config.optim.decay_steps = 400
  config.optim.ema_decay = 0.995
  config.train.steps = 400
  config.train.log_every = 50
  config.train.checkpoint_every = 100
  config.train.sample_every = 400
  config.sampling.T = 16
  config.sampling.num_samples = 1000
  config.metrics.feature_network = "own:embedded"
  return config
