"""Score samples.

  python -m experiments.evaluate --config=configs/embedded.py --workdir=DIR
      --config.sampling.w=0.3 [--samples=PATH]

scores, by the config's feature network, the samples that `experiments.sample`
makes with the same flags, sampling those that are missing.

  python -m experiments.evaluate --samples=PATH[,PATH...] --reference=PATH

computes FID (Frechet inception distance), IS (Inception score) and others of
any samples (.npz, folder of chunks or of images) against statistics, images, or
the data.source of --config. Of several paths, seeds, it adds mean, std and min.

  python -m experiments.evaluate --reference=PATH --make_reference=FILE.npz

writes such statistics. Results are printed as JSON.
"""

import json

from absl import flags

from cfgd.metrics import evaluate
from cfgd.metrics import fid
from cfgd.runtime import errors
from cfgd.sampling import generate
from experiments import launcher

_CONFIG = launcher.define_config("embedded.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_SAMPLES = flags.DEFINE_list("samples", [], "Images to score; comma-separated.")
_REFERENCE = flags.DEFINE_string("reference", None, "Statistics or images.")
_MAKE = flags.DEFINE_string("make_reference", None, "Statistics to write.")


def _report(config, workdir, samples, reference):
  if _MAKE.value and reference:
    return fid.make_reference(config, reference, _MAKE.value)
  if reference and samples:
    return fid.evaluate_blocks(config, samples, reference)
  if not workdir or len(samples) > 1 or reference or _MAKE.value:
    raise errors.UserError(
      "give --workdir (and --samples), --samples and --reference, or "
      "--reference and --make_reference"
    )
  path = samples[0] if samples else generate.generate(config, workdir)
  return evaluate.evaluate(config, workdir, path)


def main():
  """Score and print."""
  report = _report(
    _CONFIG.value, _WORKDIR.value, _SAMPLES.value, _REFERENCE.value
  )
  print(json.dumps(report, indent=2))


if __name__ == "__main__":
  launcher.run(main)
