"""What guidance costs in forward passes, on the embedded digits.

Algorithm 2, few steps, and few steps of a student that takes w, each over w,
with three seeds; and the same few steps of a model with late conditioning:

  python -m experiments.sweep --config=configs/sweep_embedded_one_pass.py
      --workdir=DIR/all
  python -m experiments.sweep --config=configs/sweep_embedded_one_pass.py:late
      --workdir=DIR/late
  python -m benchmarks.one_pass --runs=DIR --out=docs/figures/one_pass.png
"""

from configs import base
from configs import embedded
from configs import sweep_embedded

_W = (0.0, 0.1, 0.3, 0.5, 1.0, 2.0, 4.0)


def get_config(form="all"):
  """Return the embedded config with grids of one model.

  Args:
    form: "all" or "late", where label and w enter the network.
  """
  base.check_form(form, "all", "late")
  config = embedded.get_config()
  add_grids(config, form)
  config.sweep.distance = "fd_embedded"
  config.sweep.score = "is_embedded"
  config.sweep.title = "Guidance in fewer forward passes, on 10x10 digits"
  config.sweep.notes = sweep_embedded.NOTES
  return config


def add_grids(config, form):
  """Add the ways to sample that are compared, and the student's training."""
  at = {"p_uncond": (0.1,), "T": (12,), "w": _W}
  config.sampling.update({"sampler": "sde_dpmpp_2m", "grid": "logsnr", "T": 12})
  config.sweep.seeds = (0, 1, 2)
  config.sweep.grids = {"few": at}
  if form == "late":
    config.model.condition = "decoder"
    return
  config.sweep.grids.algorithm2 = at | {
    "T": (256,),
    "sampler": ("ancestral",),
    "grid": ("uniform_u",),
  }
  config.sweep.grids.distilled = at | {"guidance": ("distilled",)}
  config.sweep.student = student(config)


def student(config):
  """Return the fields of a student's training.

  Twice the model's steps at half of its learning rate. Of seed 0's students,
  800 steps reach a distance of 2.97 and 1,600 one of 2.81; their teacher's is
  2.90.
  """
  steps = 2 * config.train.steps
  rate = config.optim.learning_rate / 2
  return {
    "optim": {"learning_rate": rate, "decay_steps": steps},
    "train": {"steps": steps},
  }
