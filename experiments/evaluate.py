"""Score samples.

  python -m experiments.evaluate --config=configs/embedded.py --workdir=DIR
      --config.sampling.w=0.3 [--samples=PATH.npz]

Without --samples, scores the samples that `experiments.sample` makes with the
same flags, making what is missing. Prints the metrics as JSON.
"""

import json

from absl import flags

from cfgd.metrics import evaluate
from cfgd.sampling import generate
from experiments import launcher

_CONFIG = launcher.define_config("embedded.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_SAMPLES = flags.DEFINE_string("samples", None, "An .npz with arr_0.")
flags.mark_flag_as_required("workdir")


def main():
  """Score and print."""
  samples = _SAMPLES.value or generate.generate(_CONFIG.value, _WORKDIR.value)
  report = evaluate.evaluate(_CONFIG.value, _WORKDIR.value, samples)
  print(json.dumps(report, indent=2))


if __name__ == "__main__":
  launcher.run(main)
