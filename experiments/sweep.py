"""Sweep guidance strength, label-drop probability and steps.

  python -m experiments.sweep --config=configs/sweep_embedded.py --workdir=DIR

Trains what is missing, then samples and scores cell by cell, and writes
results.csv, report.md and report.html into DIR; the same command continues.

--plan prints the cost and the jobs to start; hours need a rate, by
benchmarks.sample or estimated for --topology=v5p:4x4x4. Several jobs may share
a DIR, each with all cells or its own, --shard=3/16. To keep jobs from waiting
for each other, run --part=trainings --shard=2/3 first, then --part=cells.
"""

from absl import flags

from cfgd.paper import report
from cfgd.runtime import errors
from cfgd.sweep import planner
from cfgd.sweep import runner
from experiments import launcher

_CONFIG = launcher.define_config("sweep_embedded.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep.")
_SHARD = flags.DEFINE_string("shard", "1/1", "This job's share, such as 3/16.")
_PARTS = ("all", "trainings", "cells")
_PART = flags.DEFINE_enum("part", "all", _PARTS, "What to run.")
_PLAN = flags.DEFINE_boolean("plan", False, "Print cost and jobs; run nothing.")
_LIST = flags.DEFINE_boolean("list_trainings", False, "Print their folders.")
_RATE = flags.DEFINE_float(
  "evaluations_per_second", 0.0, "Forward passes of one image, for --plan.", 0.0
)
_SLICE = flags.DEFINE_string("topology", "", "Chips for --plan, as v5p:4x4x4.")
flags.mark_flag_as_required("workdir")


def main():
  """Run a sweep or a part of it, or print what it would do."""
  config, workdir = _CONFIG.value, _WORKDIR.value
  write_report = report.writer(config)
  shard = launcher.parse_shard(_SHARD.value)
  if _PLAN.value:
    rates = planner.rates(config, _RATE.value, _SLICE.value)
    print("\n".join(planner.price(config, workdir, rates)))
    print(planner.jobs(config, workdir))
  elif _RATE.value or _SLICE.value:
    raise errors.UserError("a rate or --topology is for --plan: add that flag")
  elif _LIST.value:
    print("\n".join(planner.run_dirs(config, workdir)))
  elif _PART.value == "trainings":
    runner.train(config, workdir, shard=shard)
  else:
    if _PART.value == "cells":
      runner.require_trained(config, workdir, shard=shard)
    path = runner.sweep(config, workdir, write_report, shard=shard)
    print((path.parent / "report.md").read_text())
    print(f"Report: {path}")


if __name__ == "__main__":
  launcher.run(main)
