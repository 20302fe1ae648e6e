"""The grids that test the paper's claims, for any data set with class labels.

The main curve has few steps of `sde_dpmpp_2m`; the ladder over T is Algorithm
2's. `cfgd/paper/claims.py` says what is tested on them.
"""

from configs import imagenet64_classifier

_T = 12


def add(config, seeds):
  """Set the sweep and the sampler of a model's config.

  Args:
    config: of the model; `sweep.distance` and `sweep.score` are left alone.
    seeds: number of seeds of training and sampling.
  """
  config.sampling.update({"sampler": "sde_dpmpp_2m", "grid": "logsnr", "T": _T})
  config.sweep.seeds = tuple(range(seeds))
  config.sweep.grids = _grids()
  config.sweep.classifier = _classifier(config)


def add_gate(config, steps):
  """Set a sweep that shows where the best w is after how much training.

  One model, its checkpoints at `steps` times the curve over w.
  """
  config.sampling.update({"sampler": "sde_dpmpp_2m", "grid": "logsnr", "T": _T})
  config.train.steps = config.optim.decay_steps = max(steps)
  config.train.checkpoint_every = config.train.keep_every = steps[0]
  config.sweep.grids = {
    "gate": {
      "p_uncond": (0.1,),
      "T": (_T,),
      "w": (0.0, 0.3, 1.0, 2.0, 4.0),
      "checkpoint_step": steps,
    }
  }


def note(config, command):
  """Return a note of how the page is made and what its seeds vary."""
  train, sampling = config.train, config.sampling
  return (
    f"Made by {command}: {train.steps} steps of "
    f"{train.batch_size} images, {sampling.num_samples} samples per cell, "
    f"T = {sampling.T} by {sampling.sampler} unless stated. Seeds vary "
    "training and sampling; the data and the feature network are the same."
  )


def _grids():
  at = {"p_uncond": (0.1,), "T": (_T,)}
  ladder = {"sampler": ("ancestral",), "grid": ("uniform_u",)}
  return {
    "main": at | {"w": (0.0, 0.1, 0.3, 0.5, 1.0, 2.0, 4.0)},
    "p_uncond": at | {"p_uncond": (0.2, 0.5), "w": (0.0, 0.3, 1.0, 2.0)},
    "T": at | ladder | {"T": (4, 16, 64), "w": (0.0, 0.3, 1.0)},
    "classifier": at | {"guidance": ("classifier",), "w": (0.5, 1.0, 2.0, 4.0)},
    "score_scale": at | {"w": (0.0,), "score_scale": (1.05, 1.2)},
    "noise_scale": at | {"w": (0.0,), "noise_scale": (0.9, 0.6)},
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
