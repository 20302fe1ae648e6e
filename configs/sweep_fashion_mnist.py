"""The paper's claims on Fashion-MNIST, with three seeds: `make results`.

Nine models and three noisy classifiers, 99 cells: w, p_uncond and T as in the
paper's Figures 4 and 5, classifier guidance, low temperatures, and the effect
of v and clipping. The report says of every claim whether it holds.

  python -m experiments.sweep --config=configs/sweep_fashion_mnist.py:fast
      --workdir=DIR

Sizes and data are those of configs/fashion_mnist.py. On two CPU cores, fast
takes about an hour; cpu, by its FLOP, six times as long.
"""

from configs import fashion_mnist
from configs import imagenet64_classifier

_NOTES = (
  "Claims of 'Classifier-Free Diffusion Guidance' (arXiv:2207.12598), tested "
  "on Fashion-MNIST with the code that runs on ImageNet. They say nothing "
  "about ImageNet: fd_fashion and is_fashion are a Frechet distance and an "
  "Inception-style score by a small classifier trained on these images. They "
  "are not FID and IS, and compare rows of this page only.",
)


def get_config(size="gpu"):
  """Return the model's config with its grids.

  Args:
    size: gpu, cpu or fast.
  """
  config = fashion_mnist.get_config(size)
  config.sweep.seeds = (0, 1, 2)
  config.sweep.grids = _grids(config.sampling.T)
  config.sweep.classifier = _classifier(config)
  config.sweep.distance = "fd_fashion"
  config.sweep.score = "is_fashion"
  side = config.data.image_size
  config.sweep.title = f"The paper's claims on Fashion-MNIST, {side}x{side}"
  config.sweep.notes = (*_NOTES, _made_by(config, size))
  return config


def _made_by(config, size):
  """Return a note of how the page is made and what its seeds vary."""
  train, sampling = config.train, config.sampling
  return (
    f"Made by make results SIZE={size}: {train.steps} steps of "
    f"{train.batch_size} images, {sampling.num_samples} samples per cell, "
    f"T = {sampling.T} unless stated. Seeds vary training and sampling; the "
    "data and the feature network are the same for all."
  )


def _grids(steps):
  at = {"p_uncond": (0.1,), "T": (steps,)}
  return {
    "main": at | {"w": (0.0, 0.1, 0.3, 0.5, 1.0, 2.0, 4.0)},
    "p_uncond": at | {"p_uncond": (0.2, 0.5), "w": (0.0, 0.3, 1.0, 2.0)},
    "T": at | {"T": (steps // 2, 2 * steps), "w": (0.0, 0.3, 1.0)},
    "classifier": at | {"guidance": ("classifier",), "w": (0.5, 1.0, 2.0, 4.0)},
    "score_scale": at | {"w": (0.0,), "score_scale": (1.05, 1.2)},
    "noise_scale": at | {"w": (0.0,), "noise_scale": (0.9, 0.6)},
    "v": at | {"w": (0.3,), "v": (0.0, 1.0)},
    "threshold": at | {"w": (0.3, 4.0), "threshold": ("none",)},
  }


def _classifier(config):
  """Return the fields of the noisy classifier: the model's size and steps."""
  width = config.model.model_channels
  steps = config.train.steps
  classifier = imagenet64_classifier.as_classifier(
    config.copy_and_resolve_references(), num_res_blocks=1
  )
  classifier.model.model_channels = width
  classifier.model.num_head_channels = 32
  classifier.optim.learning_rate = 1e-3
  classifier.optim.ema_decay = 0.99
  classifier.optim.decay_steps = steps
  classifier.train.batch_size = config.train.batch_size
  classifier.train.steps = steps
  return {
    "task": "classifier",
    "model": classifier.model,
    "diffusion": {"p_uncond": 0.0},
    "optim": classifier.optim,
    "train": classifier.train,
  }
