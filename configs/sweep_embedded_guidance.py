"""Classifier-free and classifier guidance, and low temperatures, on digits.

The comparison of the paper's Figures 4 and 5 and of its introduction at small
scale: one backbone, one evaluator, and a noisy classifier that the sweep
trains. Half an hour on two CPU cores.

  python -m experiments.sweep --config=configs/sweep_embedded_guidance.py
      --workdir=DIR
"""

from configs import embedded_classifier
from configs import sweep_embedded


def get_config():
  """Return the embedded sweep with guidance and temperatures as axes."""
  config = sweep_embedded.get_config("full")
  classifier = embedded_classifier.get_config()
  config.sweep.classifier = {
    "task": "classifier",
    "model": classifier.model,
    "diffusion": {"p_uncond": 0.0},
    "optim": classifier.optim,
    "train": classifier.train,
  }
  p_and_t = {"p_uncond": (0.1,), "T": (16,)}
  strengths = (0.0, 0.1, 0.3, 0.5, 1.0, 2.0, 4.0)
  config.sweep.grids = {
    "guidance": p_and_t
    | {"guidance": ("cfg", "classifier", "classifier_null"), "w": strengths},
    "marginal": p_and_t | {"guidance": ("marginal",), "w": (0.3, 1.0)},
    "score_scale": p_and_t
    | {"w": (0.0,), "score_scale": (1.02, 1.05, 1.1, 1.2, 1.4)},
    "noise_scale": p_and_t
    | {"w": (0.0,), "noise_scale": (0.95, 0.9, 0.8, 0.6, 0.4)},
  }
  config.sweep.title = "Guidance by classifier, without one, and temperature"
  return config
