"""Sweep guidance strength, label-drop probability and steps.

  python -m experiments.sweep --config=configs/sweep_embedded.py --workdir=DIR

Trains what is missing, then samples and scores cell by cell; the same command
again continues. Writes results.csv, report.md and report.html into DIR.

--plan prints what that costs and does none of it: network evaluations, FLOP,
and hours at --evaluations_per_second, which benchmarks.sample measures.

Jobs may share a sweep: the same command several times works on one DIR, or
--shard=3/16 makes this the third of sixteen, which has its own cells.
"""

from absl import flags
from etils import epath

from cfgd.sweep import runner
from experiments import launcher

_CONFIG = launcher.define_config("sweep_embedded.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep.")
_SHARD = flags.DEFINE_string("shard", "1/1", "This job of how many: 3/16.")
_PLAN = flags.DEFINE_boolean("plan", False, "Print the cost, do nothing.")
_RATE = flags.DEFINE_float(
  "evaluations_per_second",
  0.0,
  "Forward passes of the model, of one image each, that the hardware makes.",
  lower_bound=0.0,
)
flags.mark_flag_as_required("workdir")


def main():
  """Run the sweep, print its table and where the report is; or its cost."""
  if _PLAN.value:
    lines = runner.price(_CONFIG.value, _WORKDIR.value, _RATE.value)
    print("\n".join(lines))
    return
  shard = launcher.parse_shard(_SHARD.value)
  path = epath.Path(runner.sweep(_CONFIG.value, _WORKDIR.value, shard=shard))
  print((path.parent / "report.md").read_text())
  print(f"Report: {path}")


if __name__ == "__main__":
  launcher.run(main)
