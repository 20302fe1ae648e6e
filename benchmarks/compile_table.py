"""Compile both of the paper's models for several chips; write tables.

  python -m benchmarks.compile_table --out=runs/compiled [--chips=v5p,h100]

Runs benchmarks.compile_for once per case, a report per case into --out, and the
numbers of docs/performance.md into --out/tables.md. The same command continues:
a case is done when its report exists. Delete the reports after a change of the
network. A case takes minutes, all of them some hours on two cores.
"""

import json
import pathlib
import subprocess
import sys
from typing import NamedTuple

from absl import flags
from absl import logging

from benchmarks import chips
from benchmarks import compiled
from cfgd.runtime import errors
from cfgd.runtime import files
from experiments import launcher

_OUT = flags.DEFINE_string("out", None, "Folder of the reports.")
_CHIPS = flags.DEFINE_list("chips", list(chips.CHIPS), "Chips to compile for.")
_PRINT = flags.DEFINE_boolean("only_tables", False, "Compile nothing.")
flags.mark_flag_as_required("out")

_TOPOLOGIES = {
  "v5e": "v5e:2x2",
  "v5p": "v5p:2x2x1",
  "v6e": "v6e:2x2",
  "h100": "h100:1x1x1",
}
# Images on a chip: what fits is found by trying the next power of two.
_BATCHES = {
  ("imagenet64", "train"): {"v5e": 16, "v5p": 32, "v6e": 32, "h100": 128},
  ("imagenet64", "sample"): {"v5e": 64, "v5p": 64, "v6e": 64, "h100": 256},
  ("imagenet128", "train"): {"v5e": 4, "v5p": 8, "v6e": 8, "h100": 32},
  ("imagenet128", "sample"): {"v5e": 16, "v5p": 16, "v6e": 16, "h100": 64},
}
# Options that save memory, and how many times the images they are tried with.
_MEMORY_SAVERS = {
  "remat": (1, ("--config.model.remat=True",)),
  "microbatches": (4, ("--config.train.microbatches=4",)),
}


class Case(NamedTuple):
  """One program to compile; `options` are more arguments of compile_for."""

  config: str
  what: str
  topology: str
  per_chip: int
  name: str = ""
  options: tuple[str, ...] = ()

  def path(self, folder):
    """Return the file of its report."""
    parts = self.config, self.what, self.topology, f"{self.per_chip}", self.name
    name = "_".join(filter(None, parts)).replace(":", "-")
    return pathlib.Path(folder) / f"{name}.json"


def cases(chosen):
  """Yield the Case list, the ones that say most first."""
  savers = {"": (1, ())} | _MEMORY_SAVERS
  for extra, (times, options) in savers.items():
    for factor in (1, 2):  # two sizes: the memory of any other follows
      for (config, what), batches in _BATCHES.items():
        for chip in chosen:
          if what == "sample" and (extra or factor > 1):
            continue
          size = batches[chip] * factor * times
          yield Case(config, what, _TOPOLOGIES[chip], size, extra, options)


def _compile(case, path):
  """Compile one case in a process of its own."""
  _, shape = chips.parse(case.topology)
  command = [
    *(sys.executable, "-m", "benchmarks.compile_for"),
    f"--config=configs/{case.config}.py",
    f"--what={case.what}",
    f"--topology={case.topology}",
    f"--batch={case.per_chip * chips.count(shape)}",
    f"--json={path}",
    *case.options,
  ]
  result = subprocess.run(command, check=False, cwd=launcher.ROOT)
  if result.returncode:
    raise errors.RunError(f"{' '.join(command)}: exit code {result.returncode}")


def main():
  """Compile what is missing, write the tables."""
  unknown = set(_CHIPS.value) - set(chips.CHIPS)
  if unknown:
    raise errors.UserError(
      f"--chips={','.join(_CHIPS.value)}: must be of {', '.join(chips.CHIPS)}"
    )
  folder = pathlib.Path(_OUT.value).absolute()
  folder.mkdir(parents=True, exist_ok=True)
  planned = list(cases(_CHIPS.value))
  for index, case in enumerate(planned):
    path = case.path(folder)
    if not path.exists() and not _PRINT.value:
      logging.info("case %d of %d: %s", index + 1, len(planned), path.stem)
      _compile(case, path)
    _write_tables(planned, folder)
  print((folder / "tables.md").read_text())


def _write_tables(planned, folder):
  found = [
    json.loads(path.read_text())
    for path in (case.path(folder) for case in planned)
    if path.exists()
  ]
  files.write_atomic(folder / "tables.md", "\n".join(compiled.tables(found)))
  rates = json.dumps(compiled.rates(found), indent=2)
  files.write_atomic(folder / "rates.json", rates + "\n")


if __name__ == "__main__":
  launcher.run(main)
