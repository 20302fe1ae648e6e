"""Compile a training step or a sampler for a TPU slice or a GPU without one.

  python -m benchmarks.compile_for --topology=v5p:2x2x1 --what=train
      --config=configs/imagenet64.py --batch=128 --json=DIR/train.json

The compiler is the accelerator's own, from the extras `tpu` and `cuda`, and the
program is the one that training or sampling would run there. Prints memory,
FLOP, bytes and the operations that cost most. Nothing is measured:

- "compiler": seconds by XLA's cost analysis, which TPU's compiler gives.
- "roofline": the sum over operations of the longer of FLOP by the chip's peak
  and bytes by its memory's rate. For a GPU there is only this one; what its
  library calls need besides operands and results is not in it.

A sampler's program holds its loop's body once, whatever T: what is said is for
one guided evaluation of all images.
"""

import importlib.metadata
import math
import pathlib
import re
import time

from absl import flags
import jax

from benchmarks import chips
from benchmarks import hlo
from benchmarks import machine
from benchmarks import programs
from cfgd import build
from cfgd.runtime import errors
from cfgd.runtime import target
from experiments import launcher

_CONFIG = launcher.define_config("imagenet64.py")
_TOPOLOGY = flags.DEFINE_string(
  "topology", None, "Slice: v5p:2x2x1, v5e:4x4, v6e:2x2, h100:1x1x1 and so on."
)
_WHAT = flags.DEFINE_enum("what", "train", ["train", "sample"], "Program.")
_BATCH = flags.DEFINE_integer(
  "batch", None, "Images, over all chips.", lower_bound=1
)
_HLO = flags.DEFINE_string("hlo", None, "File for the compiled program's text.")
flags.mark_flags_as_required(["topology", "batch"])

_SHOWN = 10
_PASSES = {"train": 3, "sample": 2}  # of the network's forward pass
_OUT_OF_MEMORY = re.compile(r"Used ([\d.]+)([MG]) of ([\d.]+)([MG]) hbm")


def lower(config, what, batch, devices):
  """Return the lowered program for some devices, with `batch` over all."""
  with target.compiling_for(devices):
    if what == "train":
      shapes = programs.train_input_shapes(config, batch, len(devices))
      return build.train_step(config).lower(*shapes)
    run, shapes = programs.sampler_shapes(config, batch, len(devices))
    return run.lower(*shapes)


def compiled_report(compiled, chip):
  """Return what a compiled program costs on one chip, as a dict."""
  memory = compiled.memory_analysis()
  found = hlo.operations(compiled.as_text())
  state, besides = (x * machine.GIB for x in machine.peak_gib(compiled))
  flop = sum(each.flop for each in found)
  cost = compiled.cost_analysis() or {}
  seconds = cost.get("optimal_seconds", 0.0)
  roofline = sum(
    max(e.flop / chip.flop_per_second, e.bytes / chip.bytes_per_second)
    for e in found
  )
  return {
    "state_bytes": state,
    "temporary_bytes": memory.temp_size_in_bytes,
    "peak_bytes": state + besides,
    "share_of_memory": (state + besides) / chip.memory,
    "fits": state + besides <= chip.memory,
    "flop": flop,
    "bytes": cost.get("bytes accessed") or sum(each.bytes for each in found),
    # A loop of unknown length counts as less than nothing.
    "compiler_seconds": seconds if seconds > 0 else None,
    "roofline_seconds": roofline,
    "by_bytes": _largest(found, "bytes"),
    "by_flop": _largest(found, "flop"),
    "bytes_by_module": hlo.by_module(found, "bytes")[:_SHOWN],
  }


def _largest(found, attribute):
  order = sorted(found, key=lambda each: -getattr(each, attribute))
  return [each._asdict() for each in order[:_SHOWN]]


def measure(config, topology, what, batch):
  """Compile and return the report; `text` of it is the program."""
  chip, _ = chips.parse(topology)
  devices = chips.devices(topology)
  if batch % len(devices):
    raise errors.UserError(
      f"--batch={batch}: must divide evenly over {len(devices)} chips"
    )
  report = _about(config, topology, what, batch, len(devices))
  lowered = lower(config, what, batch, devices)
  start = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    report |= _too_large(error, chip)
  else:
    report |= compiled_report(compiled, chip)
    report["text"] = compiled.as_text()
  report["compile_seconds"] = time.perf_counter() - start
  return report | _rates(report, chip)


def _about(config, topology, what, batch, count):
  sizes = (
    math.prod(x.shape) for x in jax.tree.leaves(build.param_shapes(config))
  )
  return {
    "config": machine.config_name(),
    "topology": topology,
    "chips": count,
    "what": what,
    "batch": batch,
    "batch_per_chip": batch // count,
    "dtype": config.model.dtype,
    "remat": config.model.remat,
    "microbatches": config.train.microbatches,
    "parameters": sum(sizes),
    "forward_flop": build.forward_flop(config),
    "model_flop": (build.forward_flop(config) * _PASSES[what] * batch // count),
    "jax": jax.__version__,
    "libtpu": _version("libtpu"),
  }


def _version(package):
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _too_large(error, chip):
  """Return the report of a program that does not fit, or raise the error."""
  match = _OUT_OF_MEMORY.search(str(error))
  if match is None:
    raise error
  scale = {"M": 2**20, "G": 2**30}
  used = float(match[1]) * scale[match[2]]
  return {
    "peak_bytes": used,
    "share_of_memory": used / chip.memory,
    "fits": False,
  }


def _rates(report, chip):
  """Return seconds of one step or evaluation, and the share of the peak."""
  if "flop" not in report:
    return {}
  # Of a sampler's program: the loop's evaluation, and the last one after it.
  held = 1
  if report["what"] == "sample":
    held = max(1, round(report["flop"] / report["model_flop"]))
  by = "compiler" if report["compiler_seconds"] else "roofline"
  seconds = report[f"{by}_seconds"] / held
  return {
    "evaluations_held": held,
    "seconds": seconds,
    "seconds_by": by,
    "share_of_peak": report["model_flop"] / seconds / chip.flop_per_second,
    "images_per_second_and_chip": report["batch_per_chip"] / seconds,
  }


def describe(report):
  """Return the report as lines of text."""
  gib = machine.GIB
  yield (
    f"{report['config']}, {report['what']}, {report['dtype']}, "
    f"{report['batch_per_chip']} images on each of {report['chips']} chips, "
    f"{report['topology']}: {report['parameters']:,} parameters, compiled in "
    f"{report['compile_seconds']:.0f} s"
  )
  yield (
    f"  memory: {report['peak_bytes'] / gib:.2f} GiB, "
    f"{report['share_of_memory']:.0%} of a chip's"
    + ("" if report["fits"] else ": does not fit")
  )
  if "flop" not in report:
    return
  yield (
    f"    state and other arguments {report['state_bytes'] / gib:.2f}, "
    f"temporaries {report['temporary_bytes'] / gib:.2f} GiB"
  )
  yield (
    f"  program: {report['flop'] / 1e12:.3g} TFLOP in products, "
    f"{report['bytes'] / 1e9:.4g} GB"
  )
  unit = "step" if report["what"] == "train" else "guided evaluation"
  yield (
    f"  {report['seconds_by']}'s estimate, not measured: "
    f"{report['seconds']:.3g} s per {unit}, "
    f"{report['images_per_second_and_chip']:.3g} images/s and chip, "
    f"{report['share_of_peak']:.0%} of the chip's peak "
    f"(roofline {report['roofline_seconds'] / report['evaluations_held']:.3g} "
    "s)"
  )
  for key, unit, scale in (("bytes", "GB", 1e9), ("flop", "GFLOP", 1e9)):
    yield f"  largest by {key}:"
    for each in report[f"by_{key}"]:
      yield (
        f"    {each[key] / scale:8.3f} {unit}  "
        f"{each['module'] or 'outside the network'}  {each['name']}"
      )


def main():
  """Compile, print, write JSON."""
  report = measure(_CONFIG.value, _TOPOLOGY.value, _WHAT.value, _BATCH.value)
  text = report.pop("text", "")
  if _HLO.value:
    pathlib.Path(_HLO.value).write_text(text)
  print("\n".join(describe(report)), flush=True)
  machine.write(report)


if __name__ == "__main__":
  launcher.run(main)
