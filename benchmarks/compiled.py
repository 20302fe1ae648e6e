"""Tables of what `compile_for` reports."""

import collections

from benchmarks import chips

_GIB = 2**30
_MODELS = {"imagenet64": "ADM-64", "imagenet128": "ADM-128"}
# Of the paper: steps and batch of a training, evaluations of a guided point.
_TRAININGS = {"imagenet64": (400_000, 2048), "imagenet128": (2_700_000, 256)}
_POINT = 50_000 * 256


def tables(found):
  """Yield the lines of all tables, in Markdown."""
  yield from _programs(found)
  yield ""
  yield from _batches(found)
  yield ""
  yield from _runs(found)


def rates(found):
  """Return [{config, forward_flop, chip, ...}], images/s and chip, for --plan.

  Of the batch that is fastest among those that fit.
  """
  best = _fastest(found)
  return [
    {
      "config": config,
      "forward_flop": report["forward_flop"],
      "dtype": report["dtype"],
      "chip": chip,
      "what": what,
      "images_per_second_and_chip": report["images_per_second_and_chip"],
    }
    for (config, chip, what), report in sorted(best.items())
  ]


def _chip(report):
  return report["topology"].partition(":")[0]


def _name(report):
  model = _MODELS.get(report["config"], report["config"])
  remat = ", remat" if report["remat"] else ""
  count = report["microbatches"]
  return f"{model}{remat}{f', {count} microbatches' if count > 1 else ''}"


def _row(*cells):
  return f"| {' | '.join(map(str, cells))} |"


def _programs(found):
  yield _row(
    *(
      "model",
      "program",
      "chip",
      "images a chip",
      "memory, GiB",
      "of a chip's",
    ),
    *("s", "by", "images/s and chip", "of the peak", "compiled in"),
  )
  yield "|---|---|---|" + "---:|" * 4 + "---|" + "---:|" * 3
  for report in found:
    head = (
      *(_name(report), report["what"], _chip(report), report["batch_per_chip"]),
      f"{report['peak_bytes'] / _GIB:.1f}",
      f"{report['share_of_memory']:.0%}",
    )
    tail = f"{report['compile_seconds']:.0f} s"
    if "seconds" not in report:
      yield _row(*head, "does not fit", "", "", "", tail)
      continue
    yield _row(
      *head,
      f"{report['seconds']:.3g}",
      report["seconds_by"],
      f"{report['images_per_second_and_chip']:,.0f}",
      f"{report['share_of_peak']:.0%}",
      tail,
    )


def _largest(reports, memory):
  """Return how many images fit by the line through two programs' memory."""
  sizes = {r["batch_per_chip"]: r["peak_bytes"] for r in reports}
  if len(sizes) < 2:
    return None
  (small, low), *_, (large, high) = sorted(sizes.items())
  each = (high - low) / (large - small)
  return int(small + (memory - low) / each)


def _batches(found):
  """Yield the largest batch of a chip, and the chips for the paper's."""
  groups = collections.defaultdict(list)
  for report in found:
    if report["what"] == "train":
      groups[_name(report), report["config"], _chip(report)].append(report)
  yield _row(
    "model", "chip", "images that fit", "paper's batch", "chips for it"
  )
  yield "|---|---|---:|---:|---:|"
  for (name, config, chip), reports in groups.items():
    largest = _largest(reports, chips.CHIPS[chip].memory)
    if largest is None or config not in _TRAININGS:
      continue
    batch = _TRAININGS[config][1]
    yield _row(name, chip, largest, batch, _chips_for(batch, largest))


def _chips_for(batch, largest):
  """Return the least power of two of chips that hold a batch."""
  if largest < 1:
    return "none"
  count = 1
  while -(-batch // count) > largest:
    count *= 2
  return count


def _fastest(found):
  best = {}
  for report in found:
    if "seconds" not in report or not report["fits"]:
      continue
    key = report["config"], _chip(report), report["what"]
    known = best.get(key, {"images_per_second_and_chip": 0.0})
    if (
      report["images_per_second_and_chip"] > known["images_per_second_and_chip"]
    ):
      best[key] = report
  return best


def _runs(found):
  """Yield the chip-hours of the paper's runs at the fastest rates."""
  best = _fastest(found)
  yield _row("model", "chip", "training", "guided point")
  yield "|---|---|---:|---:|"
  for config, (steps, batch) in _TRAININGS.items():
    images = {"train": steps * batch, "sample": _POINT}
    for chip in sorted({chip for name, chip, _ in best if name == config}):
      rates = [
        best.get((config, chip, what), {}).get("images_per_second_and_chip")
        for what in images
      ]
      hours = [
        _digits(count / rate / 3600) if rate else ""
        for count, rate in zip(images.values(), rates, strict=True)
      ]
      yield _row(_MODELS[config], chip, *hours)


def _digits(number):
  """Return a number with two significant digits at least."""
  return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
