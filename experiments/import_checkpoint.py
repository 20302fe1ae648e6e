"""Import published weights: OpenAI's of guided-diffusion, or Inception's.

  python -m experiments.import_checkpoint --model=adm_imagenet64
      --source=64x64_diffusion.pt --workdir=DIR

Then sample with --config=configs/adm_imagenet64.py --workdir=DIR.

  python -m experiments.import_checkpoint --model=inception
      --source=pt_inception-2015-12-05-6726825d.pth --workdir=DIR

writes DIR/inception-HASH.npz and says how to score with it on machines without
PyTorch, such as a pod's. DIR may be in a bucket. Needs PyTorch, which
pip install -e '.[convert]' in the repository installs.
"""

import importlib

from absl import flags

from cfgd.convert import inception
from cfgd.training import importer
from experiments import launcher

_MODEL = flags.DEFINE_enum(
  "model",
  None,
  [
    f"adm_imagenet{size}{kind}"
    for size in (64, 128)
    for kind in ("", "_classifier")
  ]
  + ["inception"],
  "Which published model; a config has the same name, except inception.",
)
_SOURCE = flags.DEFINE_string("source", None, "The .pt or .pth file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder to write.")
flags.mark_flags_as_required(["model", "source", "workdir"])


def main():
  """Read, check, convert and write the weights."""
  if _MODEL.value == "inception":
    kept = inception.keep(_SOURCE.value, _WORKDIR.value)
    print(f"score with --config.metrics.inception={kept}")
    return
  config = importlib.import_module(f"configs.{_MODEL.value}").get_config()
  importer.import_checkpoint(config, _WORKDIR.value, _SOURCE.value)


if __name__ == "__main__":
  launcher.run(main)
