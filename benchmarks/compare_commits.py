"""Compare what two commits train and sample, for a change that should not.

  python -m benchmarks.compare_commits --before=COMMIT --after=COMMIT --out=DIR

Checks out both, trains the embedded model and its classifier with `before`,
continues both with each commit, and samples from the models of `before` with
every sampler and guidance that both have, on one device. Prints, for each case,
the share of pixels that differ and by how much at most; for training, the
relative difference of the parameters and of the loss. Writes DIR/compared.json.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

from absl import flags
import jax
import numpy as np

from cfgd import build
from cfgd.runtime import checkpoint
from configs import embedded
from experiments import launcher

_BEFORE = flags.DEFINE_string("before", None, "Commit to compare with.")
_AFTER = flags.DEFINE_string("after", "HEAD", "Commit to compare.")
_OUT = flags.DEFINE_string("out", None, "Folder for checkouts and results.")
_IMAGES = flags.DEFINE_integer("images", 250, "Samples of each case.")
_STEPS = flags.DEFINE_integer("steps", 200, "Training steps before sampling.")
flags.mark_flags_as_required(["before", "out"])

_STRONG = {"w": 2.0}
_KINDS = {
  "none": {"w": 0.0},
  "cfg": _STRONG,
  "auto": _STRONG | {"guide_step": 100},
  "marginal": _STRONG,
  "classifier": _STRONG,
  "classifier_null": _STRONG,
  "cfg+classifier": {"w": 1.0, "classifier_w": 1.0},
}
_OPTIONS = (
  *({"w_schedule": name} for name in ("linear", "cosine")),
  {"interval": (-3.0, 3.0)},
  {"rescale": 0.7},
  *({"threshold": name} for name in ("dynamic", "none")),
  *({"score_scale": 1.2}, {"noise_scale": 0.7}, {"v": 1.0}, {"v": 0.0}),
)
CASES = (
  *(
    {"sampler": sampler, "guidance": kind} | fields
    for sampler in ("ancestral", "ddim")
    for kind, fields in _KINDS.items()
  ),
  *(
    {"sampler": "ancestral_mean_shift", "guidance": kind} | _STRONG
    for kind in ("classifier", "classifier_null")
  ),
  *({"guidance": "cfg"} | _STRONG | option for option in _OPTIONS),
)

# Runs inside a checkout, with what the two commits share.
_DRIVER = """
import json, pathlib, sys
from cfgd.sampling import generate
from cfgd.training import loop
from configs import embedded, embedded_classifier

work = json.loads(sys.stdin.read())
folder = pathlib.Path(work["folder"])

def config_of(kind, steps, every):
  module = {"model": embedded, "classifier": embedded_classifier}[kind]
  config = module.get_config()
  config.train.update({"steps": steps, "checkpoint_every": every, "keep": 99})
  config.train.log_every = 1
  config.train.sample_every = 0
  return config

for kind in work["train"]:
  loop.train(config_of(kind, work["steps"], work["every"]), folder / kind)

paths = []
for case in work["cases"]:
  config = config_of("model", work["steps"], work["every"])
  fields = config.sampling.to_dict()
  old = "second_dir" in fields
  if case.get("sampler") == "ancestral_mean_shift" and old:
    case |= {"sampler": "ancestral", "classifier_form": "mean"}
  kind = case["guidance"]
  dir_name, step_name = (
    ("second_dir", "second_step") if old else ("guide_dir", "guide_step")
  )
  if "guide_step" in case:
    case[step_name] = case.pop("guide_step")
  if "classifier" in kind or kind == "marginal":
    case[dir_name] = str(folder / "classifier")
  case = {k: tuple(v) if isinstance(v, list) else v for k, v in case.items()}
  config.sampling.update(case)
  config.sampling.update({"num_samples": work["images"], "T": 16})
  config.sampling.checkpoint_step = work["steps"]
  paths.append(str(generate.generate(config, folder / "model")))
(folder / "paths.json").write_text(json.dumps(paths))
"""


def _checkout(root, commit, folder):
  shutil.rmtree(folder, ignore_errors=True)
  subprocess.run(["git", "clone", "-q", root, folder], check=True)
  subprocess.run(["git", "checkout", "-q", commit], cwd=folder, check=True)


def _run(checkout, folder, *, train=(), cases=(), steps, every=100):
  work = {
    **{"folder": str(folder), "train": train, "cases": cases},
    **{"steps": steps, "every": every, "images": _IMAGES.value},
  }
  flags_of_xla = "--xla_force_host_platform_device_count=1"
  subprocess.run(
    [sys.executable, "-c", _DRIVER],
    cwd=checkout,
    input=json.dumps(work),
    env=os.environ | {"XLA_FLAGS": flags_of_xla, "PYTHONPATH": str(checkout)},
    text=True,
    check=True,
  )
  return json.loads((folder / "paths.json").read_text())


def _pixels(one, other):
  """Return the share of pixels that differ, and the greatest difference."""
  with np.load(one) as a, np.load(other) as b:
    apart = np.abs(a["arr_0"].astype(int) - b["arr_0"])
  return float((apart > 0).mean()), int(apart.max())


def _params(folder, step):
  """Return the averaged parameters of a checkpoint as one vector."""
  shapes = build.param_shapes(embedded.get_config())
  read = checkpoint.read_params(folder, step, shapes, "raw")
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(read)])


def main():
  """Check out, train, sample, compare."""
  root = pathlib.Path(__file__).resolve().parent.parent
  out = pathlib.Path(_OUT.value).resolve()
  out.mkdir(parents=True, exist_ok=True)
  commits = {"before": _BEFORE.value, "after": _AFTER.value}
  for name, commit in commits.items():
    _checkout(root, commit, out / f"checkout_{name}")
  steps, both = _STEPS.value, ("model", "classifier")
  start = out / "start"
  _run(out / "checkout_before", start, train=both, steps=steps)
  paths, later = {}, {}
  for name in commits:
    checkout, folder = out / f"checkout_{name}", out / f"run_{name}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(start, folder)
    paths[name] = _run(checkout, folder, cases=CASES, steps=steps)
    _run(checkout, folder, train=("model",), steps=steps + 1, every=1)
    later[name] = _params(folder / "model", steps + 1)
  rows = [
    {"case": case, "share": share, "greatest": greatest}
    for case, (share, greatest) in zip(
      CASES, map(_pixels, *paths.values()), strict=True
    )
  ]
  for row in rows:
    text = ", ".join(f"{k}={v}" for k, v in row["case"].items())
    print(f"{row['share']:9.2e} {row['greatest']:4d}  {text}")
  first = _params(start / "model", steps)
  step = {name: params - first for name, params in later.items()}
  norm = np.linalg.norm
  found = {
    "of the parameters": norm(step["after"] - step["before"])
    / norm(later["before"]),
    "of the step": norm(step["after"] - step["before"]) / norm(step["before"]),
  }
  for what, value in found.items():
    print(f"Training step, relative difference {what}: {value:.1e}")
  result = commits | {"cases": rows, "training": found}
  (out / "compared.json").write_text(json.dumps(result, indent=2, default=str))


if __name__ == "__main__":
  launcher.run(main)
