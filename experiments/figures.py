"""Draw samples at several w from the same noise, as the paper's figures do.

  python -m experiments.figures --config=configs/sweep_imagenet64.py
      --workdir=DIR

DIR is a trained run; a sweep's are SWEEP/runs/p*. Draws the config's
sweep.figures into DIR/figures and prints their paths.
"""

from absl import flags

from cfgd.paper import figures
from experiments import launcher

_CONFIG = launcher.define_config("sweep_embedded.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the trained run.")
flags.mark_flag_as_required("workdir")


def main():
  """Draw the figures and print their paths."""
  for path in figures.draw(_CONFIG.value, _WORKDIR.value):
    print(path)


if __name__ == "__main__":
  launcher.run(main)
