"""Train a model.

  python -m experiments.train --config=configs/imagenet64.py --workdir=DIR

The same command resumes. Override fields by --config.train.steps=1000.
"""

from absl import flags

from cfgd.training import loop
from experiments import launcher

_CONFIG = launcher.define_config("embedded.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
flags.mark_flag_as_required("workdir")


def main():
  """Train to the last step."""
  loop.train(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
  launcher.run(main)
