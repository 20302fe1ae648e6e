"""Sample from a trained model.

  python -m experiments.sample --config=configs/embedded.py --workdir=DIR
      --config.sampling.w=0.3

Writes an .npz (arr_0 uint8 NHWC, arr_1 labels) and a PNG grid under
DIR/samples and prints the path. The same command resumes.
"""

from absl import flags

from cfgd.sampling import generate
from experiments import launcher

_CONFIG = launcher.define_config("embedded.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the trained run.")
flags.mark_flag_as_required("workdir")


def main():
  """Sample what is missing and print the path of the samples."""
  print(generate.generate(_CONFIG.value, _WORKDIR.value))


if __name__ == "__main__":
  launcher.run(main)
