"""Print a table of accelerators from measured reports.

  python -m benchmarks.device_tables --folder=runs/h100

Reads the JSON files that benchmarks/on_device.sh leaves in a folder: a row per
training step and sampler, with the ratio beside PyTorch where one was measured
at the same batch, then the checks and the versions. Images per second and
ratios are medians.
"""

import json
import pathlib

from absl import flags

from cfgd.runtime import errors
from experiments import launcher

_FOLDER = flags.DEFINE_string("folder", None, "Where the JSON files are.")
flags.mark_flag_as_required("folder")

_HEAD = """\
| device | model | program | batch | img/s | TFLOP/s | of matmul | peak GiB | \
beside PyTorch |
|---|---|---|---:|---:|---:|---:|---:|---:|"""
_MODELS = {"imagenet64": "ADM-64", "imagenet128": "ADM-128"}
_PROGRAMS = {
  "train_step": "training",
  "sample": "guided sampling",
  "forward": "forward pass",
}
_VERSIONS = ("python", "jax", "flax", "torch")


def read(folder):
  """Return the reports in a folder, sorted by file name."""
  paths = sorted(pathlib.Path(folder).glob("*.json"))
  if not paths:
    raise errors.UserError(f"--folder={folder}: no JSON files there")
  reports = []
  for path in paths:
    try:
      report = json.loads(path.read_text())
    except ValueError as error:
      raise errors.UserError(f"{path}: {error}") from error
    try:
      table([report])  # each alone, so that the message names the file
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise errors.UserError(
        f"{path}: not a report of a benchmark, {type(error).__name__}: {error}"
      ) from error
    reports.append(report)
  return reports


def _key(report, what):
  """Return what a row of the table is of, in the order of the rows."""
  return (
    report["device"],
    list(_MODELS).index(report["config"])
    if report["config"] in _MODELS
    else len(_MODELS),
    report["config"],
    report["dtype"],
    list(_PROGRAMS).index(what),
    report["batch_size"],
  )


def rows(reports):
  """Return {key: (report, report beside PyTorch)}; one of them may be None."""
  found = {}
  for report in reports:
    if report["program"] in _PROGRAMS:
      key = _key(report, report["program"])
      found[key] = (report, found.get(key, (None, None))[1])
    elif report["program"] == "peer":
      key = _key(report, report["what"])
      found[key] = (found.get(key, (None, None))[0], report)
  return dict(sorted(found.items()))


def _ratio(peer):
  if peer is None:
    return ""
  ratio = peer["ratio"]
  how = "compiled" if peer["torch_compiled"] else "eager"
  return (
    f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}), {how}"
  )


def _numbers(ours, peer):
  """Return img/s, TFLOP/s, share and memory as cells of the table."""
  if ours is None:  # peers are timed in turns, without FLOP and memory
    seconds = peer["seconds"]["ours"]["median"]
    return [f"{peer['batch_size'] / seconds:.3g}", "", "", ""]
  return [
    f"{ours['images_per_second']['median']:.3g}",
    f"{ours['flop_per_second_and_device'] / 1e12:.3g}",
    f"{ours['fraction_of_matmul_peak']:.0%}",
    f"{ours['peak_gib']:.1f}",
  ]


def _row(ours, peer):
  """Return a line of the table."""
  report = ours or peer
  program = _PROGRAMS[report.get("what", report["program"])]
  if report.get("T"):
    program += f", T={report['T']}"
  model = _MODELS.get(report["config"], report["config"])
  cells = [report["device"], f"{model}, {report['dtype']}", program]
  cells += [str(report["batch_size"]), *_numbers(ours, peer), _ratio(peer)]
  return f"| {' | '.join(cells)} |"


def checks(reports):
  """Return lines about parity and about the same images by other batches."""
  lines = []
  for report in reports:
    if report["program"] == "parity":
      kind = "with" if report["cudnn"] else "without"
      lines.append(
        f"Parity, {kind} cuDNN's attention: {len(report['rows'])} comparisons, "
        f"{len(report['broken'])} beyond their limits."
      )
    elif report["program"] == "layouts":
      found = report["rows"]
      batches = ", ".join(str(row["batch_size"]) for row in found)
      lines.append(
        f"The same images of {report['config']}, {report['dtype']}, T="
        f"{report['T']}, by batches of {batches}: at most "
        f"{max(row['largest'] for row in found)} of 255 apart, at most "
        f"{max(row['share'] for row in found):.2%} of numbers differ."
      )
  return lines


def versions(reports):
  """Return lines with the devices and the versions of the libraries."""
  known = {
    name: sorted({report[name] for report in reports if name in report})
    for name in _VERSIONS
  }
  text = ", ".join(
    f"{name} {' and '.join(found)}" for name, found in known.items() if found
  )
  return [f"Versions: {text}."] if text else []


def table(reports):
  """Return the whole text: the table, the checks, the versions."""
  lines = [_HEAD, *(_row(*row) for row in rows(reports).values())]
  lines += ["", *checks(reports), *versions(reports)]
  return "\n".join(lines)


def main():
  """Print the table."""
  print(table(read(_FOLDER.value)))


if __name__ == "__main__":
  launcher.run(main)
