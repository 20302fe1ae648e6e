"""Table 1 and Figure 4 of the paper: ImageNet 64x64, p_uncond x w at T=256.

Three trainings (p_uncond 0.1, 0.2, 0.5), a noisy classifier for classifier
guidance, and 50,000 samples for each of 48 cells.

  python -m experiments.sweep --config=configs/sweep_imagenet64.py --workdir=DIR

Figures 1 and 6, from one of its models:

  python -m experiments.figures --config=configs/sweep_imagenet64.py
      --workdir=DIR/runs/p0.1

On a pod or a cluster: docs/launch.md.
"""

from configs import imagenet64
from configs import imagenet64_classifier

# Sixteen classes drawn once: the paper does not state those of its figures.
RANDOM_CLASSES = (
  *(304, 628, 504, 40, 729, 605, 808, 909),
  *(837, 74, 969, 266, 502, 16, 174, 646),
)
MALAMUTE = (249,)
CLASSIFIER_NOTE = (
  "Rows of the variant 'classifier' are classifier guidance (arXiv:2105.05233) "
  "of the same network, by a noisy classifier that this sweep trains; the "
  "paper has no numbers for them."
)
_NOTES = (
  "Classifier-free guidance at the settings of the paper's Table 1, whose T is "
  "not printed beside it: 256 is what the paper calls balanced.",
  CLASSIFIER_NOTE,
)


def get_config():
  """Return the 64x64 config with the paper's grid and baseline."""
  config = imagenet64.get_config()
  add_classifier(config, imagenet64_classifier.get_config(), (256,))
  config.sweep.paper = "table1_imagenet64"
  config.sweep.title = "ImageNet 64x64: classifier-free guidance"
  config.sweep.notes = _NOTES
  config.sweep.figures = {
    "figure1": {"labels": (MALAMUTE,), "w": (0.0, 1.0, 2.0, 4.0), "side": 3},
    "figure6": {
      "labels": (RANDOM_CLASSES, MALAMUTE),
      "w": (0.0, 1.0, 3.0),
      "side": 4,
    },
  }
  return config


def add_classifier(config, classifier, steps):
  """Add rows of classifier guidance to a sweep, and their classifier."""
  config.sweep.classifier = {
    "task": "classifier",
    "data": {"random_crop": classifier.data.random_crop},
    "model": classifier.model,
    "diffusion": {"p_uncond": 0.0},
    "optim": classifier.optim,
    "train": classifier.train,
  }
  config.sweep.grids.classifier = {
    "p_uncond": (0.1,),
    "T": steps,
    "w": (0.1, 0.3, 0.5, 1.0, 2.0, 4.0),
    "guidance": ("classifier",),
  }
