"""What a point of a sweep costs beyond its network evaluations.

  python -m benchmarks.sweep_point --config=configs/sweep_embedded.py
      --json=FILE

Runs points as `experiments.sweep` does: samples made, stored and scored, cells
written, and the report, which a sweep draws at its end and once a minute.
The bare compiled sampler on as many images takes turns with them; the result is
the median of the overheads. Then a sweep over 41 values of w at one T counts
compilations: more than one of the sampler is a failure, exit code 1.

The model is trained for --train_steps only: its quality changes no timing.
"""

import tempfile
import time

from absl import flags
from etils import epath
import jax
import numpy as np

from benchmarks import machine
from benchmarks import programs
from cfgd import build
from cfgd.metrics import evaluate
from cfgd.paper import report as paper_report
from cfgd.runtime import errors
from cfgd.sampling import generate
from cfgd.sweep import grid
from cfgd.sweep import runner
from experiments import launcher

_CONFIG = launcher.define_config("sweep_embedded.py")
_STEPS = flags.DEFINE_integer("T", 16, "Network evaluations per branch.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Turns.")
_POINTS = flags.DEFINE_integer("points", 3, "Points of each turn.")
_TRAIN_STEPS = flags.DEFINE_integer("train_steps", 2, "Steps of training.")
_COUNT_IMAGES = flags.DEFINE_integer(
  "count_images", 20, "Images of each w where compilations are counted."
)

_P_UNCOND = 0.1
_PMAPPED = "jit(_fun)"  # what JAX calls every pmapped function


class Compilations:
  """Record the name and seconds of every compilation inside the block."""

  def __enter__(self):
    """Start listening."""
    self.seconds = {}
    jax.monitoring.register_event_duration_secs_listener(self._note)
    return self

  def __exit__(self, *_):
    """Stop listening."""
    jax.monitoring.unregister_event_duration_listener(self._note)

  def _note(self, event, seconds, **about):
    if event == "/jax/core/compile/backend_compile_duration":
      self.seconds.setdefault(about["fun_name"], []).append(seconds)


def one_axis(config, ws, num_steps):
  """Return the config of a sweep over w alone."""
  config = config.copy_and_resolve_references()
  axes = {"p_uncond": (_P_UNCOND,), "T": (num_steps,), "w": tuple(ws)}
  with config.unlocked():
    config.sweep.grids = {"main": axes}
  return config


def points(config, workdir, ws, num_steps):
  """Run a sweep over some w; return the seconds of its parts, per point.

  The sweep finds its samples and scores made, so its own time is the rest:
  looking for both, the cells' files, the report.
  """
  run_dir = workdir / "runs" / f"p{_P_UNCOND:g}"
  seconds = np.zeros(3)
  for w in ws:
    cell = grid.cell_config(config, p_uncond=_P_UNCOND, w=w, T=num_steps)
    cell.metrics.feature_dir = str(workdir / "feature_net")
    times = [time.perf_counter()]
    samples = generate.generate(cell, run_dir)
    times.append(time.perf_counter())
    evaluate.evaluate(cell, run_dir, samples)
    times.append(time.perf_counter())
    seconds[:2] += np.diff(times)
  start = time.perf_counter()
  _sweep(one_axis(config, ws, num_steps), workdir)
  seconds[2] = time.perf_counter() - start
  names = ("generate_and_store", "evaluate", "cell_and_report")
  return dict(zip(names, (seconds / len(ws)).tolist(), strict=True))


def bare(config, num_steps):
  """Compile the sampler alone.

  Returns:
    (call that makes the images of a point and stores none, facts about its
    program).
  """
  sampling = config.sampling
  rows = sampling.batch_size * jax.local_device_count()
  run, arguments = programs.sampler(config, rows, num_steps)
  start = time.perf_counter()
  compiled = run.lower(*arguments).compile()
  calls = -(-sampling.num_samples // rows)
  facts = {
    "compile_seconds": time.perf_counter() - start,
    "peak_gib": sum(machine.peak_gib(compiled)),
    "images_with_filling": calls * rows,
  }
  return lambda: [compiled(*arguments) for _ in range(calls)], facts


def compare(config, workdir, num_steps, num_points, repeats):
  """Time points and their evaluations alone, in turns.

  Returns:
    Dict of seconds, overheads in percent of the evaluations, and `bare`'s
    facts.
  """
  config.sampling.w = 0.3
  call, facts = bare(config, num_steps)
  machine.timed(call, 1)
  # Trains, compiles and reads the data.
  _sweep(one_axis(config, [0.29], num_steps), workdir)
  rounds = []
  for number in range(repeats):
    alone = sum(machine.timed(call, num_points)) / num_points
    first = number * num_points
    ws = [round(0.3 + 0.001 * (first + i), 3) for i in range(num_points)]
    parts = points(config, workdir, ws, num_steps)
    rounds.append(parts | {"evaluations_alone": alone})
    print(", ".join(f"{k} {v:.2f} s" for k, v in rounds[-1].items()))
  seconds = {key: [row[key] for row in rounds] for key in rounds[0]}
  parts = [key for key in rounds[0] if key != "evaluations_alone"]
  return facts | {
    "seconds": {key: machine.spread(values) for key, values in seconds.items()},
    "overhead_percent": _overhead(rounds, parts),
    "overhead_of_sampling_percent": _overhead(rounds, ["generate_and_store"]),
  }


def _sweep(config, workdir):
  runner.sweep(config, workdir, paper_report.writer(config))


def _overhead(rounds, parts):
  """Return by how many percent parts of a point exceed its evaluations."""
  ratios = [
    sum(row[part] for part in parts) / row["evaluations_alone"]
    for row in rounds
  ]
  return machine.spread([100 * (ratio - 1) for ratio in ratios])


def count_compilations(config, workdir, num_steps):
  """Return how often a sweep over 41 values of w compiles the sampler.

  A point at another T runs first and compiles the other pmapped functions,
  training and the feature network, so that only the sampler is left.
  """
  _sweep(one_axis(config, [0.0], num_steps + 1), workdir)
  config = one_axis(config, [i / 10 for i in range(41)], num_steps)
  with Compilations() as compilations:
    _sweep(config, workdir)
  every = compilations.seconds
  return {
    "w_values": 41,
    "sampler_compilations": len(every.get(_PMAPPED, [])),
    "all_compilations": {name: len(seconds) for name, seconds in every.items()},
  }


def _measure(config):
  with tempfile.TemporaryDirectory() as folder:
    workdir = epath.Path(folder)
    report = compare(
      config,
      workdir / "points",
      _STEPS.value,
      num_points=_POINTS.value,
      repeats=_REPEATS.value,
    )
    # A batch size of its own: no program compiled so far fits it.
    config.sampling.num_samples = _COUNT_IMAGES.value
    config.sampling.batch_size = _COUNT_IMAGES.value
    report |= count_compilations(config, workdir / "count", _STEPS.value)
  return report


def _rates(config, report):
  """Return the rate of a point, and the network's while it ran alone."""
  medians = {key: value["median"] for key, value in report["seconds"].items()}
  alone = medians.pop("evaluations_alone")
  images = 2 * _STEPS.value * report["images_with_filling"]
  flop = build.forward_flop(config) * images / jax.device_count()
  number = config.sampling.num_samples
  return {
    "T": _STEPS.value,
    "num_samples": number,
    "images_per_second_of_the_point": number / sum(medians.values()),
    **machine.rates(flop, alone, config.model.dtype),
  }


def main():
  """Measure, print, write JSON; fail if the sampler compiled more than once."""
  config = _CONFIG.value
  config.train.update(
    steps=_TRAIN_STEPS.value,
    checkpoint_every=_TRAIN_STEPS.value,
    sample_every=0,
  )
  report = machine.environment() | _measure(
    config.copy_and_resolve_references()
  )
  report |= _rates(config, report)
  compilations = report["sampler_compilations"]
  print(
    f"{machine.config_name()}, {report['num_samples']} images, "
    f"T={_STEPS.value} on {report['devices']} x {report['device']}: a point "
    f"costs {report['overhead_percent']['median']:.1f}% more than its "
    "evaluations alone (sampling and storing "
    f"{report['overhead_of_sampling_percent']['median']:.1f}%), "
    f"{report['images_per_second_of_the_point']:.3g} images/s; alone "
    f"{machine.describe_rates(report)}, peak {report['peak_gib']:.2f} GiB, "
    f"compiled in {report['compile_seconds']:.0f} s; {report['w_values']} "
    f"values of w compiled the sampler {compilations} times"
  )
  machine.write(report)
  if compilations != 1:
    raise errors.RunError(
      f"{report['w_values']} values of w compiled the sampler {compilations} "
      "times: must be once"
    )


if __name__ == "__main__":
  launcher.run(main)
