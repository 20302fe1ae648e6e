"""Table 1 and Figure 4 of the paper: ImageNet 64x64, p_uncond x w at T=256.

Three trainings (p_uncond 0.1, 0.2, 0.5), a noisy classifier for classifier
guidance, and 50,000 samples for each of 48 cells.

  python -m experiments.sweep --config=configs/sweep_imagenet64.py --workdir=DIR

The same cells in 12 evaluations, not Algorithm 2's 256, from the same models if
it is the same folder:

  python -m experiments.sweep --config=configs/sweep_imagenet64.py:fast
      --workdir=DIR

The same few steps by students of these models, in one forward pass each, and by
models with late conditioning, the latter in a folder of their own: `:distilled`
and `:late` (docs/guidance.md).

Figures 1 and 6, from one of its models:

  python -m experiments.figures --config=configs/sweep_imagenet64.py
      --workdir=DIR/runs/p0.1

On a pod or a cluster: docs/launch.md.
"""

from configs import base
from configs import imagenet64
from configs import imagenet64_classifier
from configs import student_imagenet64

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
# See docs/sampling.md.
FEW_STEPS = {"sampler": "sde_dpmpp_2m", "grid": "logsnr"}
FEW_T = (12,)
_FAST_NOTE = (
  "Sampled in few steps, by {} with T = {}: for the paper's numbers, which are "
  "those of Algorithm 2, run this config without ':fast'. Sampler and T were "
  "chosen on digits and have not been measured on ImageNet."
)
_NOTES = (
  "Classifier-free guidance at the settings of the paper's Table 1, whose T is "
  "not printed beside it: 256 is what the paper calls balanced.",
  CLASSIFIER_NOTE,
)


def get_config(form="paper"):
  """Return the 64x64 config with the paper's grid and baseline.

  Args:
    form: "paper"; "fast" for few steps; "distilled" or "late" for fewer forward
      passes, too.
  """
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
  set_form(config, form)
  return config


def set_form(config, form):
  """Leave a sweep as the paper's, or make it one of few steps.

  And of few forward passes: with distilled guidance, or late conditioning.
  """
  base.check_form(form, "paper", "fast", "distilled", "late")
  if form in ("distilled", "late"):
    _set_passes(config, form)
  if form != "paper":
    config.sampling.update(FEW_STEPS)
    for axes in config.sweep.grids.values():
      axes.T = FEW_T
    config.sampling.T = FEW_T[0]
    config.sweep.paper = ""
    config.sweep.title += ", few steps"
    steps = " and ".join(map(str, FEW_T))
    note = _FAST_NOTE.format(FEW_STEPS["sampler"], steps)
    config.sweep.notes = (note, *config.sweep.notes[1:])


def _set_passes(config, form):
  config.sweep.classifier = {}
  main = config.sweep.grids.main
  if form == "late":
    config.model.condition = "decoder"
    config.sweep.grids = {"main": main}
    return
  axes = {**main.to_dict(), "guidance": ("distilled",)}
  config.sweep.grids = {"distilled": axes}
  student = student_imagenet64.as_student(config.copy_and_resolve_references())
  config.sweep.student = {
    "model": {"dropout": student.model.dropout},
    "optim": student.optim,
    "train": student.train,
  }


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
