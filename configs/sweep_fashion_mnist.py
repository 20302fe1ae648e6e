"""The paper's claims on Fashion-MNIST, with three seeds: `make results`.

Nine models and three noisy classifiers, 99 cells: w, p_uncond and T as in the
paper's Figures 4 and 5, guidance by a classifier, low temperatures, and what v
and clipping do. The report says of every claim whether it holds.

  python -m experiments.sweep --config=configs/sweep_fashion_mnist.py:fast
      --workdir=DIR

Sizes as in configs/fashion_mnist.py, which also says where the data comes from.
On two CPU cores, fast takes about an hour and cpu, by its FLOP, six times that.
"""

from configs import fashion_mnist
from configs import imagenet64_classifier

_NOTES = (
  "What this is: claims of 'Classifier-Free Diffusion Guidance' "
  "(arXiv:2207.12598) and of its introduction, tested on Fashion-MNIST (60,000 "
  "training images, 10,000 held out) with the code that ImageNet runs on.",
  "What it is not: evidence about ImageNet. fd_fashion is a Frechet distance "
  "in the features of a small classifier trained on these images, not FID; "
  "is_fashion is the Inception-style score by its class probabilities. They "
  "compare rows of this page only, and depend on the number of samples.",
  "fd_fashion measures against the training images, as the paper does, "
  "fd_fashion_heldout against images that no model has seen. copied is an "
  "estimate, from the nearest real images, of the share of samples that are "
  "copies of training images: about 0 where nothing is, 1 where all is.",
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
  """Say how the page is made, and what it leaves open."""
  train, sampling = config.train, config.sampling
  return (
    f"Made by: make results SIZE={size}. {train.steps} steps of "
    f"{train.batch_size} images, learning rate {config.optim.learning_rate:g}, "
    f"{sampling.num_samples} samples a cell, T = {sampling.T} unless said. Not "
    "known from it: what longer training, larger networks, more samples and "
    "other data sets would say, and what spread other feature networks would "
    "add; the seeds are those of training and of sampling."
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
