"""The noisy classifier of the embedded digits: a minute on two CPU cores.

python -m experiments.train --config=configs/embedded_classifier.py
    --workdir=DIR
"""

from configs import embedded
from configs import imagenet64_classifier


def get_config():
  """Return the overrides of the embedded model for its classifier."""
  config = embedded.get_config()
  steps = config.train.steps
  config = imagenet64_classifier.as_classifier(config, num_res_blocks=1)
  config.model.model_channels = 32
  config.model.num_head_channels = 32
  config.optim.learning_rate = 1e-3
  config.optim.ema_decay = 0.99
  config.optim.decay_steps = steps
  config.train.batch_size = 64
  config.train.steps = steps
  config.train.sample_every = 200
  return config
