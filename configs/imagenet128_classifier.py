"""The noisy classifier for 128x128 classifier guidance, trained as in ADM.

42.6 M parameters, AdamW, batch 256, 300k steps (77 M images): Table 12 of
Dhariwal & Nichol (arXiv:2105.05233).

  python -m experiments.prepare_data --dataset=imagenet128 --random_crop=0.8
      --manual_dir=ARCHIVES
  python -m experiments.train --config=configs/imagenet128_classifier.py
      --workdir=DIR
"""

from configs import imagenet64_classifier
from configs import imagenet128


def get_config():
  """Return the overrides of the 128x128 model for its classifier."""
  config = imagenet128.get_config()
  config.data.random_crop = 0.8
  return imagenet64_classifier.as_classifier(config, num_res_blocks=2)
