"""Compare the same images, sampled with several batch sizes.

  python -m benchmarks.layouts --config=configs/embedded.py --batches=8,64,125
      --images=128 --T=12 --json=DIR/layouts.json

Image i depends on (seed, i) alone, so each batch size should draw the same ones
up to rounding. Weights are drawn by a rule (tests/models/golden_weights.py): a
fresh network's last layers are zero, which hides faults. Sampling's own check
draws one image in every place of a call as well. Prints the largest difference
from the first batch size, of 255, and the share of numbers that differ; above
--most the exit code is 1.
"""

import re
import time

from absl import flags
import jax
import numpy as np

from benchmarks import machine
from cfgd import build
from cfgd.runtime import distributed
from cfgd.runtime import errors
from experiments import launcher
from tests.models import golden_weights

_CONFIG = launcher.define_config("embedded.py")
_BATCHES = flags.DEFINE_list(
  "batches", ["8", "64", "125", "128"], "Images per device and call."
)
_IMAGES = flags.DEFINE_integer("images", 128, "Images.", lower_bound=1)
_STEPS = flags.DEFINE_integer("T", 12, "Network evaluations per branch.")
_MOST = flags.DEFINE_integer("most", 16, "Largest difference allowed, of 255.")


def sample(config, batch, num_steps, number):
  """Return images 0 to number - 1, [number, H, W, C] uint8.

  Args:
    config: ConfigDict.
    batch: images per device and call.
    num_steps: T.
    number: of images.
  """
  config = config.copy_and_resolve_references()
  config.sampling.update({"batch_size": batch, "T": num_steps})
  params, _ = golden_weights.fill(build.param_shapes(config))
  params = distributed.replicate_locally((params, None))
  draw = build.sampler(config)
  draw.check_places(params)
  rows, index = batch * jax.local_device_count(), np.arange(number)
  parts, classes = [], config.data.num_classes
  for part in np.split(index, range(rows, number, rows)):
    images, finite = draw(params, part, (part % classes).astype(np.int32))
    if not finite.all():
      raise errors.RunError(f"batch {batch}: images that are not finite")
    parts.append(images)
  return np.concatenate(parts)


def compare(images, reference):
  """Return how two sets of uint8 images differ."""
  apart = np.abs(images.astype(int) - reference)
  return {"largest": int(apart.max()), "share": float(np.mean(apart > 0))}


def _batches():
  if not _BATCHES.value or not all(
    re.fullmatch("[1-9][0-9]*", text) for text in _BATCHES.value
  ):
    raise errors.UserError(
      f"--batches={','.join(_BATCHES.value)}: must be numbers, such as 8,64"
    )
  return [int(text) for text in _BATCHES.value]


def main():
  """Sample, compare, print, write JSON; fail above --most."""
  config, rows, reference = _CONFIG.value, [], None
  for batch in _batches():
    start = time.perf_counter()
    images = sample(config, batch, _STEPS.value, _IMAGES.value)
    seconds = time.perf_counter() - start
    reference = images if reference is None else reference
    row = {"batch_size": batch, **compare(images, reference)}
    row |= {"contrast": float(images.std()), "seconds": seconds}
    rows.append(row)
    print(
      f"{machine.config_name()}, {config.model.dtype}, {_IMAGES.value} images, "
      f"T={_STEPS.value}, batch {batch} beside {rows[0]['batch_size']}: "
      f"largest difference {row['largest']} of 255, {row['share']:.2%} of "
      f"numbers differ, standard deviation {row['contrast']:.0f}, "
      f"{seconds:.0f} s",
      flush=True,
    )
  report = {"program": "layouts", "config": machine.config_name()}
  report |= {"dtype": config.model.dtype, "T": _STEPS.value, "rows": rows}
  machine.write(machine.environment() | report)
  largest = max(row["largest"] for row in rows)
  if largest > _MOST.value:
    raise errors.RunError(
      f"batch sizes differ by {largest} of 255, more than --most={_MOST.value}"
    )


if __name__ == "__main__":
  launcher.run(main)
