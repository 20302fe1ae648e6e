"""Sweep guidance strength, label-drop probability and steps.

  python -m experiments.sweep --config=configs/sweep_embedded.py --workdir=DIR

Trains what is missing, then samples and scores cell by cell; run the same
command again to continue. Writes results.csv, report.md and report.html into
DIR.

--plan prints the cost and does nothing else: network evaluations, FLOP, and
hours at --evaluations_per_second, which benchmarks.sample measures.

Several jobs may share a sweep: run the same command several times on one DIR,
or give each its own cells with --shard=3/16, the third of sixteen.
"""

from absl import flags
from etils import epath

from cfgd.paper import report
from cfgd.sweep import planner
from cfgd.sweep import runner
from experiments import launcher

_CONFIG = launcher.define_config("sweep_embedded.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep.")
_SHARD = flags.DEFINE_string("shard", "1/1", "Share of this job, as in 3/16.")
_PLAN = flags.DEFINE_boolean("plan", False, "Print the cost, do nothing.")
_RATE = flags.DEFINE_float(
  "evaluations_per_second",
  0.0,
  "Forward passes of the model, of one image each, that the hardware makes.",
  lower_bound=0.0,
)
flags.mark_flag_as_required("workdir")


def main():
  """Run the sweep and print its report, or print its cost."""
  config, workdir = _CONFIG.value, _WORKDIR.value
  write_report = report.writer(config)
  if _PLAN.value:
    print("\n".join(planner.price(config, workdir, _RATE.value)))
    return
  shard = launcher.parse_shard(_SHARD.value)
  path = runner.sweep(config, workdir, write_report, shard=shard)
  print((epath.Path(path).parent / "report.md").read_text())
  print(f"Report: {path}")


if __name__ == "__main__":
  launcher.run(main)
