"""A student of ImageNet 64x64: guidance in one forward pass.

It learns what its teacher, a run of configs/imagenet64.py, predicts with
guidance, for w from 0 to 4 (Meng et al., arXiv:2210.03142, section 3.1): a
quarter of its steps, of five forward passes an image where its own take three.
The number of steps was not tried on ImageNet.

  python -m experiments.train --config=configs/student_imagenet64.py
      --workdir=DIR --config.distill.teacher=TEACHER
"""

from configs import imagenet64


def get_config():
  """Return the overrides of the 64x64 model for its student."""
  return as_student(imagenet64.get_config())


def as_student(config):
  """Turn a diffusion model's config into that of its student.

  Network, data and noise levels stay.

  Args:
    config: of the teacher.
  """
  config.task = "guided_student"
  config.model.dropout = 0.0
  config.diffusion.p_uncond = 0.0
  config.optim.learning_rate = 1e-4
  config.train.steps //= 4
  config.optim.decay_steps = config.train.steps
  config.sampling.guidance = "distilled"
  config.sampling.update({"sampler": "sde_dpmpp_2m", "grid": "logsnr", "T": 12})
  return config
