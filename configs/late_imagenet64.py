"""ImageNet 64x64 with late conditioning, section 5 of the paper.

The label enters from the middle of the network on, so that a guided evaluation
costs 1.58 forward passes, not 2. Otherwise configs/imagenet64.py.

  python -m experiments.train --config=configs/late_imagenet64.py --workdir=DIR
"""

from configs import imagenet64


def get_config():
  """Return the overrides of the 64x64 model."""
  config = imagenet64.get_config()
  config.model.condition = "decoder"
  config.sweep.title = "ImageNet 64x64, late conditioning"
  return config
