"""The paper's claims on Fashion-MNIST: `make results SIZE=cpu` or `SIZE=gpu`.

Three models and a noisy classifier for each seed: w, p_uncond and T as in the
paper's Figures 4 and 5, classifier guidance and low temperatures. The report
says of every claim whether it holds.

  python -m experiments.sweep --config=configs/sweep_fashion_mnist.py:cpu
      --workdir=DIR

Sizes and data are those of configs/fashion_mnist.py; cpu trains for 600 steps.
`:gate` shows why: its best w in {0, 0.3, 1, 2, 4} is 1, 0.3, 0.3 and 0 after
600, 1,200, 2,400 and 4,000 steps, with fd_fashion 23.2, 26.6, 26.2 and 27.7.
"""

from configs import base
from configs import claims
from configs import fashion_mnist

_NOTES = (
  "Claims of 'Classifier-Free Diffusion Guidance' (arXiv:2207.12598), tested "
  "on Fashion-MNIST with the code that runs on ImageNet. They say nothing "
  "about ImageNet: fd_fashion and is_fashion are a Frechet distance and an "
  "Inception-style score by a small classifier trained on these images. They "
  "are not FID and IS, and compare rows of this page only.",
)
_SEEDS = {"cpu": 6, "gpu": 5}
_STEPS_ON_CPU = 600


def get_config(form="gpu"):
  """Return the model's config with its grids.

  Args:
    form: gpu, cpu or gate.
  """
  base.check_form(form, *_SEEDS, "gate")
  config = fashion_mnist.get_config("cpu" if form == "gate" else form)
  config.sweep.distance = "fd_fashion"
  config.sweep.score = "is_fashion"
  side = config.data.image_size
  if form == "gate":
    claims.add_gate(config, (600, 1_200, 2_400, 4_000))
    config.sweep.title = f"Lengths of training on Fashion-MNIST, {side}x{side}"
    config.sweep.notes = _NOTES
    return config
  if form == "cpu":
    config.train.steps = config.optim.decay_steps = _STEPS_ON_CPU
    config.sampling.num_samples = 1_000
  claims.add(config, _SEEDS[form])
  config.sweep.title = f"The paper's claims on Fashion-MNIST, {side}x{side}"
  config.sweep.notes = (
    *_NOTES,
    claims.note(config, f"make results SIZE={form}"),
  )
  return config
