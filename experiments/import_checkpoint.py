"""Import the weights that OpenAI published with guided-diffusion.

  python -m experiments.import_checkpoint --model=adm_imagenet64
      --source=64x64_diffusion.pt --workdir=DIR

Then sample with --config=configs/adm_imagenet64.py --workdir=DIR. Needs
PyTorch to read the file: pip install -e '.[convert]'.
"""

import importlib

from absl import flags

from cfgd.training import importer
from experiments import launcher

_MODEL = flags.DEFINE_enum(
  "model",
  None,
  [
    f"adm_imagenet{size}{kind}"
    for size in (64, 128)
    for kind in ("", "_classifier")
  ],
  "Which published model; a config has the same name.",
)
_SOURCE = flags.DEFINE_string("source", None, "The .pt file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder to write.")
flags.mark_flags_as_required(["model", "source", "workdir"])


def main():
  """Read, check, convert and write the weights."""
  config = importlib.import_module(f"configs.{_MODEL.value}").get_config()
  importer.import_checkpoint(config, _WORKDIR.value, _SOURCE.value)


if __name__ == "__main__":
  launcher.run(main)
