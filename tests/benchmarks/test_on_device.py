"""The script of an accelerator: its options, and what it does with its steps.

Steps are a fake interpreter's here: no network is measured.
"""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
SCRIPT = ROOT / "benchmarks" / "on_device.sh"
# Notes each step that it is asked for, and writes the report of each. The step
# whose name has $BREAK in it fails.
PYTHON = """#!/usr/bin/env bash
words="$*"
case "$words" in
  *device_tables*) echo "| table |" ;;
  *--json=*)
    json="${words#*--json=}" json="${json%% *}"
    echo "${json##*/}" >> "$NOTES"
    if [[ -n "${SLOW:-}" ]]; then sleep "$SLOW"; fi
    if [[ -n "${BREAK:-}" && "$json" == *"$BREAK"* ]]; then
      echo "error: out of memory" >&2
      exit 1
    fi
    echo "{}" > "$json" ;;
esac
"""


def run(*arguments, **variables):
  done = subprocess.run(
    [SCRIPT, *arguments],
    capture_output=True,
    text=True,
    env=os.environ | variables,
  )
  return done.returncode, done.stdout, done.stderr


@pytest.fixture
def measure(tmp_path):
  """Return a function: (**variables) -> (exit code, output, steps asked)."""
  fake = tmp_path / "python"
  fake.write_text(PYTHON)
  fake.chmod(0o755)
  notes = tmp_path / "notes"

  def call(*arguments, **variables):
    notes.write_text("")
    code, out, err = run(
      *(tmp_path / "out", "TINY=1", f"PYTHON={fake}", *arguments),
      **variables | {"NOTES": str(notes)},
    )
    assert err == ""
    steps = notes.read_text().split()
    return code, out, [step.removesuffix(".part") for step in steps]

  return call


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ([], "no folder for the results"),
    (["BUDGET=1"], "the first argument is the folder"),
    (["out", "SPEED=1"], "SPEED=1: unknown option"),
    (["out", "BUDGET=soon"], "BUDGET=soon: must be a whole number"),
    (["out", "BUDGET=99999999999999999999"], "is too large"),
    (["out", "BATCHES64=64,0"], "BATCHES64=64,0: must be numbers"),
    (["out", "BATCHES128=8,16,8"], "BATCHES128=8,16,8: one number is there"),
    (["out", "BUDGET=0"], "BUDGET=0: must be at least 1"),
    (["out", "TINY=yes"], "TINY=yes: must be 1 or nothing"),
    (["out", "WHEELS=/none"], "WHEELS=/none: no folder with wheels"),
    (["out", "PEER=/none"], "PEER=/none: no checkout"),
    (["out", "DATA=/none"], "DATA=/none: must be idx:DIR"),
    (["out", "BATCHES64=1;2"], "BATCHES64=1;2: must be numbers"),
    (["out", "PYTHON=/none"], "PYTHON=/none: no such program"),
    (["/proc/none"], "/proc/none: cannot be made"),
  ],
)
def test_a_mistake_ends_in_one_line(arguments, words):
  code, out, err = run(*arguments)
  assert (code, out) == (2, "")
  assert err.startswith("error: ")
  assert words in err
  assert err.count("\n") == 1


def test_help_names_every_variable():
  code, out, _ = run("--help")
  assert code == 0
  for name in ("WHEELS", "PEER", "DATA", "BUDGET", "TINY", "BATCHES64"):
    assert f"\n{name}=" in out


def test_all_steps_run_once(measure):
  code, out, steps = measure()
  assert code == 0
  assert {"parity", "layouts-float32", "train_step-imagenet64-2"} <= set(steps)
  assert len(set(steps)) == len(steps)
  assert f"{len(steps)} steps done; failed: none; left" in out
  assert "skipped peer-*: PEER is not given" in out
  assert out.endswith("| table |\n")
  assert measure()[2] == []


def test_a_failed_step_is_named_and_tried_again_at_the_end(measure):
  code, out, steps = measure(BREAK="parity")
  assert code == 1
  assert "parity: FAILED with exit code 1: error: out of memory" in out
  assert "failed: parity; left for the next call: none" in out
  assert measure(BREAK="parity")[::2] == (1, ["parity"])
  assert measure()[::2] == (0, ["parity"])
  assert "parity" in steps
  assert len(steps) > 5


def test_what_is_over_the_budget_is_left_for_the_next_call(measure):
  code, out, begun = measure("BUDGET=8", SLOW="5")
  assert code == 0
  assert "cut off by BUDGET=8" in out
  assert "left for the next call: layouts-float32 layouts-bfloat16" in out
  assert begun == ["parity", "layouts-float32"]
  code, _, steps = measure()
  assert code == 0
  assert steps[0] == "layouts-float32"
  assert "parity" not in steps
