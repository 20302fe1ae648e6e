"""A student of ImageNet 128x128: guidance in one forward pass.

As configs/student_imagenet64.py, of a run of configs/imagenet128.py.

  python -m experiments.train --config=configs/student_imagenet128.py
      --workdir=DIR --config.distill.teacher=TEACHER
"""

from configs import imagenet128
from configs import student_imagenet64


def get_config():
  """Return the overrides of the 128x128 model for its student."""
  return student_imagenet64.as_student(imagenet128.get_config())
