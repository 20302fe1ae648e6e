"""The paper's experiment at small scale, on the embedded data: `make demo`.

Sweeps guidance strength w for one model by Algorithm 2, and beside it by a
sampler of few steps, both with 12 evaluations. With more of them and more
samples, and a few points of the other axes, label-drop probability (Figure 4)
and number of steps (Figure 5), in three times the time:

  python -m experiments.sweep --config=configs/sweep_embedded.py:full
      --workdir=DIR

`:claims` tests the paper's claims with five seeds: `make results`. Its 400
steps of training are enough for a best w inside of the grid: seed 0 has
fd_embedded 6.95, 4.40, 2.89, 4.72, 16.4, 46.5, 94.3 at w = 0, 0.1, 0.3, 0.5, 1,
2, 4. `:gate` shows the curve after other lengths of training.
"""

from configs import base
from configs import claims
from configs import embedded

NOTES = (
  "The experiment of 'Classifier-Free Diffusion Guidance' (arXiv:2207.12598) "
  "in minutes, on 4,000 MNIST digits of 10x10 pixels, with the code that runs "
  "on ImageNet. It says nothing about ImageNet: fd_embedded and is_embedded "
  "are a Frechet distance and an Inception-style score by a small classifier "
  "trained on these digits. They are not FID and IS, and compare rows of this "
  "page only.",
)


def get_config(form="demo"):
  """Return the embedded config with its grids.

  Args:
    form: "demo"; "full" with the axes p_uncond and T; "claims" or "gate".
  """
  base.check_form(form, "demo", "full", "claims", "gate")
  config = embedded.get_config()
  config.sweep.distance = "fd_embedded"
  config.sweep.score = "is_embedded"
  config.sweep.title = "Classifier-free guidance on 10x10 digits"
  config.sweep.notes = NOTES
  if form == "gate":
    claims.add_gate(config, (400, 800, 1_600))
  elif form == "claims":
    claims.add(config, seeds=5)
    config.sweep.title = "The paper's claims on 10x10 digits"
    config.sweep.notes = (*NOTES, claims.note(config, "make results"))
  else:
    _add_demo(config, form)
  return config


def _add_demo(config, form):
  grids = config.sweep.grids
  grids.main.p_uncond = (0.1,)
  grids.main.T = (12,)
  grids.main.w = (0.0, 0.1, 0.3, 0.5, 1.0, 2.0, 4.0)
  grids.fast = {
    "p_uncond": (0.1,),
    "T": (12,),
    "w": (0.0, 0.3, 0.5),
    "sampler": ("sde_dpmpp_2m",),
    "grid": ("logsnr",),
  }
  if form == "demo":
    config.sampling.num_samples = 750
  else:
    grids.main.T = (16,)
    grids.p_uncond = {"p_uncond": (0.5,), "T": (16,), "w": (0.0, 0.3, 1.0)}
    grids.T = {"p_uncond": (0.1,), "T": (8, 32), "w": (0.0, 0.3)}
  config.sweep.figures = {
    "all_and_threes": {"labels": ((), (3,)), "w": (0.0, 1.0, 4.0), "side": 5}
  }
