"""ImageNet 128x128 with late conditioning, section 5 of the paper.

The label enters from the middle of the network on, so that a guided evaluation
costs 1.57 forward passes, not 2. Otherwise configs/imagenet128.py.

  python -m experiments.train --config=configs/late_imagenet128.py --workdir=DIR
"""

from configs import imagenet128


def get_config():
  """Return the overrides of the 128x128 model."""
  config = imagenet128.get_config()
  config.model.condition = "decoder"
  config.sweep.title = "ImageNet 128x128, late conditioning"
  return config
