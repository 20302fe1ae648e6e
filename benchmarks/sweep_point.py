"""What a point of a sweep costs beside its network evaluations alone.

  python -m benchmarks.sweep_point --config=sweep_embedded --json=FILE

Points, as `experiments.sweep` runs them: samples made and stored, scored, the
cells written and the report, which a sweep draws at its end and once a minute.
Beside them the bare compiled sampler on as many images. They take turns; what
counts is the median of the overheads. Then a sweep over 41 values of w at one T
counts what is really compiled: more than one compilation of the sampler is a
failure, exit code 1.

The model is trained for --train_steps only: how good it is changes no timing.
"""

import argparse
import sys
import tempfile
import time

from etils import epath
import jax
import numpy as np

from benchmarks import machine
from benchmarks import sample
from cfgd import config as config_lib
from cfgd import networks
from cfgd.metrics import evaluate
from cfgd.paper import report as report_lib
from cfgd.sampling import generate
from cfgd.sampling import sampler as sampler_lib
from cfgd.sweep import runner

_P_UNCOND = 0.1
_PMAPPED = "jit(_fun)"  # what JAX calls every pmapped function


class Compilations:
  """Names and seconds of everything that is compiled while it is entered."""

  def __enter__(self):
    """Start to listen."""
    self.seconds = {}
    jax.monitoring.register_event_duration_secs_listener(self._note)
    return self

  def __exit__(self, *_):
    """Stop to listen."""
    jax.monitoring.unregister_event_duration_listener(self._note)

  def _note(self, event, seconds, **about):
    if event == "/jax/core/compile/backend_compile_duration":
      self.seconds.setdefault(about["fun_name"], []).append(seconds)


def one_axis(config, ws, num_steps):
  """Return the config of a sweep over w alone."""
  config = config.copy_and_resolve_references()
  for name in list(config.sweep.grids):
    del config.sweep.grids[name]
  axes = {"p_uncond": (_P_UNCOND,), "T": (num_steps,), "w": tuple(ws)}
  config.sweep.grids.main = axes
  return config


def sweep(config, workdir):
  """Run a sweep as `experiments.sweep` does."""
  runner.sweep(config, workdir, report_lib.writer(config))


def points(config, workdir, ws, num_steps):
  """Run a sweep over some w; return the seconds of its parts, per point.

  What is sampled and scored here is found by the sweep, which is left with the
  rest: looking for both, the cells' files, the report.
  """
  run_dir = workdir / "runs" / f"p{_P_UNCOND:g}"
  seconds = np.zeros(3)
  for w in ws:
    cell = config_lib.cell_config(config, p_uncond=_P_UNCOND, w=w, T=num_steps)
    cell.metrics.feature_dir = str(workdir / "feature_net")
    times = [time.perf_counter()]
    samples = generate.generate(cell, run_dir)
    times.append(time.perf_counter())
    evaluate.evaluate(cell, run_dir, samples)
    times.append(time.perf_counter())
    seconds[:2] += np.diff(times)
  start = time.perf_counter()
  sweep(one_axis(config, ws, num_steps), workdir)
  seconds[2] = time.perf_counter() - start
  names = ("generate_and_store", "evaluate", "cell_and_report")
  return dict(zip(names, (seconds / len(ws)).tolist(), strict=True))


def bare(config, num_steps):
  """Compile the sampler alone.

  Returns:
    (call that makes the images of a point and keeps none of them, what is
    known of its program).
  """
  sampling = config.sampling
  rows = sampling.batch_size * jax.local_device_count()
  run, arguments = sample.make_call(
    config, rows, num_steps, sampler_lib.prefers_two_passes()
  )
  start = time.perf_counter()
  compiled = run.lower(*arguments).compile()
  seconds = time.perf_counter() - start
  held, besides = machine.peak_gib(compiled)
  calls = -(-sampling.num_samples // rows)
  known = {
    "compile_seconds": seconds,
    "peak_gib": held + besides,
    "images_with_filling": calls * rows,
  }
  return lambda: [compiled(*arguments) for _ in range(calls)], known


def compare(config, workdir, options):
  """Time points and their evaluations alone, in turns.

  Returns:
    Dict of seconds, shares in percent of the evaluations, and the program's.
  """
  config.sampling.w = 0.3
  call, known = bare(config, options.T)
  machine.timed(call, 1)
  # Trains, compiles and reads the data.
  sweep(one_axis(config, [0.29], options.T), workdir)
  rounds = []
  for number in range(options.repeats):
    alone = sum(machine.timed(call, options.points)) / options.points
    first = number * options.points
    ws = [round(0.3 + 0.001 * (first + i), 3) for i in range(options.points)]
    parts = points(config, workdir, ws, options.T)
    rounds.append(parts | {"evaluations_alone": alone})
    print(", ".join(f"{k} {v:.2f} s" for k, v in rounds[-1].items()))
  seconds = {key: [row[key] for row in rounds] for key in rounds[0]}
  parts = [key for key in rounds[0] if key != "evaluations_alone"]
  return known | {
    "seconds": {key: machine.spread(values) for key, values in seconds.items()},
    "overhead_percent": _overhead(rounds, parts),
    "overhead_of_sampling_percent": _overhead(rounds, ["generate_and_store"]),
  }


def _overhead(rounds, parts):
  """Return by how much some parts of a point exceed its evaluations."""
  ratios = [
    sum(row[part] for part in parts) / row["evaluations_alone"]
    for row in rounds
  ]
  return machine.spread([100 * (ratio - 1) for ratio in ratios])


def count_compilations(config, workdir, num_steps):
  """Return how often a sweep over 41 values of w compiles the sampler.

  A point at another T comes first: what else is pmapped, training and the
  network that scores, is compiled there, and what is left is the sampler.
  """
  sweep(one_axis(config, [0.0], num_steps + 1), workdir)
  config = one_axis(config, [i / 10 for i in range(41)], num_steps)
  with Compilations() as compilations:
    sweep(config, workdir)
  every = compilations.seconds
  return {
    "w_values": 41,
    "sampler_compilations": len(every.get(_PMAPPED, [])),
    "all_compilations": {name: len(seconds) for name, seconds in every.items()},
  }


def _parse(argv):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  machine.add_config_arguments(parser, "sweep_embedded")
  parser.add_argument("--T", type=int, default=16)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--points", type=int, default=3, help="of each repeat")
  parser.add_argument("--train-steps", type=int, default=2)
  parser.add_argument(
    "--count-images", type=int, default=20, help="of each w that is counted"
  )
  parser.add_argument("--matmul", type=int, default=4096, help="side, of peak")
  parser.add_argument("--json", help="file to write")
  return parser.parse_args(argv)


def _measure(config, options):
  with tempfile.TemporaryDirectory() as folder:
    workdir = epath.Path(folder)
    report = compare(config, workdir / "points", options)
    config.sampling.num_samples = options.count_images
    config.sampling.batch_size = options.count_images
    # A batch of its own: nothing compiled before can serve it.
    report |= count_compilations(config, workdir / "count", options.T)
  return report


def _rates(config, report, options):
  """Return what the network did while it ran alone."""
  seconds = report["seconds"]["evaluations_alone"]["median"]
  evaluations = 2 * options.T * report["images_with_filling"]
  work = networks.forward_flop(config) * evaluations / jax.device_count()
  peak = machine.matmul_peak(config.model.dtype, options.matmul, 5)
  whole = sum(
    spread["median"]
    for key, spread in report["seconds"].items()
    if key != "evaluations_alone"
  )
  return {
    "T": options.T,
    "num_samples": config.sampling.num_samples,
    "images_per_second_of_the_point": config.sampling.num_samples / whole,
    "flop_per_second_and_device": work / seconds,
    "matmul_flop_per_second": peak,
    "fraction_of_matmul_peak": work / seconds / peak,
  }


def main(argv):
  """Measure, print, write JSON; fail if the sampler was compiled again."""
  options = _parse(argv)
  config = machine.load_config(options)
  config.train.steps = config.train.checkpoint_every = options.train_steps
  config.train.sample_every = 0
  report = machine.environment() | _measure(
    config.copy_and_resolve_references(), options
  )
  report |= _rates(config, report, options)
  whole, sampling = (
    report[key]["median"]
    for key in ("overhead_percent", "overhead_of_sampling_percent")
  )
  print(
    f"{options.config}, {report['num_samples']} images, T={options.T} on "
    f"{report['devices']} x {report['device']}: a point costs "
    f"{whole:.1f}% more than its evaluations alone "
    f"(sampling and storing {sampling:.1f}%), "
    f"{report['images_per_second_of_the_point']:.3g} images/s; alone "
    f"{report['flop_per_second_and_device'] / 1e12:.3g} TFLOP/s = "
    f"{report['fraction_of_matmul_peak']:.0%} of matmul, peak "
    f"{report['peak_gib']:.2f} GiB, compiled in "
    f"{report['compile_seconds']:.0f} s; {report['w_values']} values of w "
    f"compiled the sampler {report['sampler_compilations']} times"
  )
  machine.write_json(options.json, report)
  return int(report["sampler_compilations"] != 1)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
