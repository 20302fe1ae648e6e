"""Images of your own in class folders, at small scale: docs/own_data.md.

16x16 pixels in colour, 0.8 M parameters, for two CPU cores. Set data.source,
data.num_classes and, for more pixels, data.image_size with
model.attention_resolutions at half of it.
"""

from configs import base
from configs import embedded


def get_config():
  """Return the overrides; set the source and the number of classes."""
  config = base.get_config()
  config.data.source = "folder:images"
  config.data.image_size = 16
  embedded.as_small(config)
  config.data.channels = 3
  config.optim.decay_steps = 3_000
  config.optim.ema_decay = 0.998
  config.train.steps = 3_000
  config.train.checkpoint_every = 500
  config.train.sample_every = 1_000
  config.sampling.update(
    {"sampler": "sde_dpmpp_2m", "grid": "logsnr", "T": 12, "num_samples": 1_000}
  )
  config.metrics.feature_network = "own:images"
  config.sweep.grids.main.p_uncond = (0.1,)
  config.sweep.grids.main.T = (12,)
  config.sweep.grids.main.w = (0.0, 0.3, 1.0, 2.0, 4.0)
  config.sweep.distance = "fd_images"
  config.sweep.score = "is_images"
  config.sweep.title = "Guidance on images of my own"
  config.sweep.figures = {
    "all": {"labels": ((),), "w": (0.0, 1.0, 4.0), "side": 10}
  }
  return config
