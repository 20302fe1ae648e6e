"""Table 2 and Figure 5 of the paper: ImageNet 128x128, T x w.

One training, a noisy classifier for classifier guidance, and 50,000 samples for
each of 48 cells.

  python -m experiments.sweep --config=configs/sweep_imagenet128.py
      --workdir=DIR

In few steps, from the same model if it is the same folder: the same command
with configs/sweep_imagenet128.py:fast; `:distilled` and `:late` as in
configs/sweep_imagenet64.py.

Figures 3, 7 and 8, from its model:

  python -m experiments.figures --config=configs/sweep_imagenet128.py
      --workdir=DIR/runs/p0.1

On a pod or a cluster: docs/launch.md.
"""

from configs import imagenet128
from configs import imagenet128_classifier
from configs import sweep_imagenet64

_RANDOM = sweep_imagenet64.RANDOM_CLASSES
_NOTES = (
  "Classifier-free guidance at the settings of the paper's Table 2. The paper "
  "does not state p_uncond of this model; here it is 0.1.",
  sweep_imagenet64.CLASSIFIER_NOTE,
)


def get_config(form="paper"):
  """Return the 128x128 config with the paper's grid and baseline.

  Args:
    form: see `sweep_imagenet64.get_config`.
  """
  config = imagenet128.get_config()
  sweep_imagenet64.add_classifier(
    config, imagenet128_classifier.get_config(), (256,)
  )
  config.sweep.paper = "table2_imagenet128"
  config.sweep.title = "ImageNet 128x128: classifier-free guidance"
  config.sweep.notes = _NOTES
  config.sweep.figures = {
    "figure3": {"labels": (_RANDOM,), "w": (0.0, 3.0), "side": 4},
    "figure7": {
      "labels": (_RANDOM, sweep_imagenet64.MALAMUTE),
      "w": (0.0, 1.0, 4.0),
      "side": 4,
    },
    "figure8": {"labels": ((),), "w": (0.0, 3.0), "side": 8},
  }
  sweep_imagenet64.set_form(config, form)
  return config
