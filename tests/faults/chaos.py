"""Disturb trainings and sweeps, and compare with undisturbed ones.

  python -m tests.faults.chaos --kills=50 --json=DIR/chaos.json

Everything runs as a user runs it, in processes of its own, on a model of the
embedded digits small enough to be started a hundred times: killed at random
moments by SIGKILL and SIGTERM, with a full disk, with a damaged checkpoint,
with one of two processes dead, with two jobs on one sweep. The outcome must be
the same to the last bit, else the exit code is 1.
"""

import argparse
import json
import os
import pathlib
import random
import sys
import tempfile
import traceback

from tests.faults import outcomes
from tests.faults import stages


def run(folder, kills, seed):
  """Run all stages; returns (report, whether anything went wrong)."""
  chaos = stages.Chaos(folder, random.Random(seed))
  tally = chaos.tally
  in_sweeps, in_pairs = kills // 4, max(1, kills // 25)
  in_trainings = kills - in_sweeps - in_pairs
  reference = stages.undisturbed(chaos)
  calls = {
    "killed_trainings": (stages.kill_training, reference, in_trainings),
    "damaged_checkpoints": (stages.damage_checkpoints, reference),
    "full_disk_by": (stages.fill_disk, reference),
    "killed_sweeps": (stages.kill_sweeps, in_sweeps),
    "seconds_until_survivor_ended": (stages.kill_one_of_two, in_pairs),
    "two_by_two_against_one_by_four": (stages.compare_layouts,),
  }
  results = {}
  for name, (stage, *arguments) in calls.items():
    outcomes.say(f"{name}: {tally.kills} kills, {tally.runs} runs so far")
    try:
      results[name] = stage(chaos, *arguments)
    except Exception as error:  # the other stages still count
      traceback.print_exc()
      tally.surprises.append(f"{name}: {type(error).__name__}: {error}")
  report = tally.report() | {
    "seed": seed,
    "seconds_to_first_step_undisturbed": round(reference.start_seconds, 2),
    **{name: value for name, value in results.items() if value is not None},
  }
  return report, tally.failed


def main(argv):
  """Run, print, write JSON; return the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--kills", type=int, default=50)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--folder", help="scratch; default: a temporary one")
  parser.add_argument("--json", help="file to write")
  options = parser.parse_args(argv)
  with tempfile.TemporaryDirectory(dir=options.folder) as folder:
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/cache")
    report, failed = run(pathlib.Path(folder), options.kills, options.seed)
  text = json.dumps(report, indent=2)
  print(text)
  if options.json:
    pathlib.Path(options.json).write_text(text + "\n")
  return int(failed)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
