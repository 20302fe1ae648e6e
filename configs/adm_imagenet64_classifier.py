"""OpenAI's published ImageNet 64x64 classifier, 64x64_classifier.pt (ADM).

It takes timesteps of ADM's schedule, as `adm_imagenet64` does.

  python -m experiments.import_checkpoint --model=adm_imagenet64_classifier
      --source=64x64_classifier.pt --workdir=DIR
"""

from configs import adm_imagenet64
from configs import imagenet64_classifier


def get_config():
  """Return the overrides of ADM's 64x64 model for its classifier."""
  config = adm_imagenet64.get_config()
  return imagenet64_classifier.as_classifier(config, num_res_blocks=4)
