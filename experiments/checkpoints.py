"""List the checkpoints of a run and verify them.

  python -m experiments.checkpoints --workdir=DIR

Reads every file of every checkpoint. Exit code 1 if one is damaged.
"""

from absl import flags

from cfgd.runtime import checkpoint
from cfgd.runtime import errors
from experiments import launcher

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
flags.mark_flag_as_required("workdir")
_ROW = "{:>9}  {:>9}  {:8}  {:24}  {}"


def main():
  """Print a line per checkpoint; raise an error if any is damaged."""
  print(_ROW.format("step", "MB", "config", "preprocessing", "files"))
  damaged, count = [], 0
  for found in checkpoint.inspect(_WORKDIR.value):
    count += 1
    if found.fault:
      damaged.append(found.step)
    print(
      _ROW.format(
        found.step,
        "-" if found.size is None else f"{found.size / 1e6:.1f}",
        found.meta.get("config", "-"),
        found.meta.get("preprocessing") or "-",
        f"DAMAGED: {found.fault}" if found.fault else found.state,
      )
    )
  if not count:
    raise errors.UserError(f"--workdir={_WORKDIR.value}: no checkpoints")
  if damaged:
    raise errors.RunError(
      f"{len(damaged)} of {count} checkpoints are damaged: steps "
      f"{', '.join(map(str, damaged))}; training and sampling skip them"
    )


if __name__ == "__main__":
  launcher.run(main)
