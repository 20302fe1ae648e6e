"""OpenAI's published ImageNet 128x128 classifier, 128x128_classifier.pt (ADM).

It takes timesteps of ADM's schedule, as `adm_imagenet128` does.

  python -m experiments.import_checkpoint --model=adm_imagenet128_classifier
      --source=128x128_classifier.pt --workdir=DIR
"""

from configs import adm_imagenet128
from configs import imagenet64_classifier


def get_config():
  """Return the overrides of ADM's 128x128 model for its classifier."""
  config = adm_imagenet128.get_config()
  return imagenet64_classifier.as_classifier(config, num_res_blocks=2)
