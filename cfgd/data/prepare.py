"""Prepare a data set: crop and resize its originals once, on all cores.

Every shard is written whole or not at all and kept: running again makes the
missing ones. The set gets its name when all records have been counted.
"""

import concurrent.futures
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import pathlib
import shutil
import threading

from absl import logging
import cv2
from etils import epath
import numpy as np

from cfgd.data import catalog
from cfgd.data import images
from cfgd.data import prepared
from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import files
from cfgd.runtime import lease
from cfgd.runtime import progress

# Most shards of a part, and fewest images of a shard. A killed preparation
# loses the shards in progress.
_MOST_SHARDS = 128
_LEAST_IMAGES = 32
_IMAGES_WORTH_A_PROCESS = 500
_RECORD_OVERHEAD = 128  # bytes: label, names of the features, index
_SHARD_OVERHEAD = 2 * 2**16  # ArrayRecord pads its blocks
_LEASE_SECONDS = 120.0  # without renewal, after which another job takes over
_USUAL_ASPECT = 1.4  # of photographs, to estimate the space they need


def ensure(spec):
  """Prepare a data set for training if it is missing; the processes wait.

  Except ImageNet, whose archives experiments.prepare_data must be shown.
  """
  if catalog.is_prepared_on_demand(spec.source):
    prepare(spec)


def prepare(spec, *, manual_dir="", workers=0, allow_other=False):
  """Prepare a data set, resuming a killed preparation; return its path.

  If another job prepares it, wait for that one. Among several processes, the
  first one works.

  Args:
    spec: spec.Spec.
    manual_dir: folder of ImageNet's archives, or of TFDS's manual downloads.
    workers: processes; 0 for one per core.
    allow_other: accept archives of ImageNet that are not the official ones.
  """
  spec = catalog.with_size(spec)
  options = {"manual_dir": manual_dir, "allow_other": allow_other}
  path, there = distributed.by_lead(lambda: _look(spec, **options))
  if there:
    return epath.Path(path)
  # Outside of the set's folders, which are removed if they stay empty.
  home = prepared.data_home(spec.data_dir)
  name = "-".join(epath.Path(path).relative_to(home).parts)
  with lease.hold(home / name, seconds=_LEASE_SECONDS, wait=True) as check:
    return epath.Path(
      distributed.by_lead(lambda: _prepare(spec, workers, check, **options))
    )


def _look(spec, **options):
  """Return (path of the set, whether it is there)."""
  path, metadata = catalog.find_prepared(spec)
  if metadata is None:
    return os.fspath(path), False
  if metadata["preprocessing"].startswith("imagenet."):
    _check_archives(path, metadata, spec, options)
  logging.info("Prepared already: %s (%s).", path, metadata["preprocessing"])
  return os.fspath(path), True


def _originals(spec, path, options):
  verified = prepared.incomplete(path) / "verified.json"
  return catalog.find(spec, verified=verified, **options)


def _prepare(spec, workers, check_lease, **options):
  """Make the set, unless the job that we waited for has; return its path."""
  name, there = _look(spec, **options)
  if there:
    return name
  path = epath.Path(name)
  half = prepared.incomplete(path)
  half.mkdir(parents=True, exist_ok=True)
  try:
    found = _originals(spec, path, options)
    earlier = catalog.earlier_set(found, spec)
    if earlier and _has_pixels_of(earlier, found, spec):
      prepared.write_contents(earlier, found.fingerprint)
      logging.info("Prepared already, with the same pixels: %s.", earlier)
      return os.fspath(earlier)
    plan = _plan(found, spec)
    _claim(half, plan)
    _make(found, plan, path, spec, workers)
    _check_unchanged(found, catalog.name_of(spec), half)
    check_lease()
    _finish(found, plan, path, spec)
  finally:
    _remove_if_empty(half)
  return name


def _has_pixels_of(path, found, spec):
  """Return whether an earlier version's set equals the originals of today."""
  metadata = prepared.read_metadata(path, command="this command")
  if metadata["preprocessing"] != spec.preprocessing(found.earlier):
    return False
  if prepared.read_contents(path):  # compared before, with other originals
    return False
  number = sum(map(len, found.parts.values()))
  comparing = progress.Progress(f"Comparing with {path}", number)
  for part, of in found.parts.items():
    stored = prepared.Prepared(path, part, metadata)
    preprocess, _ = _preprocessing(part, spec)
    for row, (image, label) in enumerate(of):
      example = stored[row]
      if example["label"] != label:
        return False
      if not np.array_equal(example["image"], preprocess(image)):
        return False
      comparing.add(1)
  return True


def _check_archives(path, metadata, spec, options):
  """Refuse a set that was prepared from other archives than these."""
  if (
    not options["allow_other"]
    or _originals(spec, path, options).fingerprint != metadata["originals"]
  ):
    raise errors.UserError(
      f"{path}: was prepared from other archives of ImageNet's structure "
      f"({metadata['preprocessing']}); remove it or choose another --data_dir"
    )


def _remove_if_empty(folder):
  """Leave no folders behind, here and two above, if nothing was prepared."""
  with contextlib.suppress(OSError):  # not empty, or not there
    for path in (folder, folder.parent, folder.parent.parent):
      pathlib.Path(path).rmdir()


def _plan(found, spec):
  """Return what the set will consist of, as JSON."""
  return {
    "preprocessing": spec.preprocessing(found.name),
    "originals": found.fingerprint,
    "lengths": {part: _lengths(len(of)) for part, of in found.parts.items()},
  }


def _lengths(number):
  """Return the sizes of the shards that hold this many images."""
  shards = max(1, min(_MOST_SHARDS, number // _LEAST_IMAGES))
  edges = [number * i // shards for i in range(shards + 1)]
  return [stop - start for start, stop in itertools.pairwise(edges)]


def _claim(half, plan):
  """Record the plan, or check that the set was begun with the same one."""
  path = half / "plan.json"
  if not path.exists():
    files.write_atomic(path, json.dumps(plan))
    return
  begun = json.loads(path.read_text())
  if begun != plan:
    raise errors.UserError(
      f"{half}: begun from other originals or in another way "
      f"({begun['preprocessing']}, not {plan['preprocessing']}, or other "
      "images); remove it and start again"
    )


def _make(found, plan, path, spec, workers):
  """Write the missing shards."""
  half = prepared.incomplete(path)
  for stale in half.glob(".tmp-*"):
    stale.unlink()
  missing, needed = [], 0
  for part, lengths in plan["lengths"].items():
    starts = [0, *itertools.accumulate(lengths)]
    preprocess, pixels = _preprocessing(part, spec)
    record = int(pixels * found.channels) + _RECORD_OVERHEAD
    for i, shard in enumerate(prepared.shard_paths(path, part, len(lengths))):
      target = half / shard.name
      if prepared.count(target) != lengths[i]:
        of = found.parts[part][starts[i] : starts[i + 1]]
        missing.append((of, target, preprocess, bool(spec.whole)))
        needed += lengths[i] * record + _SHARD_OVERHEAD
  _check_space(half, needed)
  total = sum(map(len, found.parts.values()))
  number = sum(len(of) for of, *_ in missing)
  logging.info(
    "Preparing %d images as %s in %s; %d are done.",
    *(total, plan["preprocessing"], path, total - number),
  )
  _write_shards(missing, number, workers or _default_workers(number))


def _preprocessing(part, spec):
  """Return the function that preprocesses a part's images, and its pixels."""
  if spec.whole and part == "train":
    pixels = spec.whole**2 * (1 if spec.crop else _USUAL_ASPECT)
    preprocess = functools.partial(
      images.preprocess_whole, crop=spec.crop, side=spec.whole
    )
    return preprocess, pixels
  preprocess = functools.partial(
    images.preprocess, crop=spec.crop, size=spec.image_size
  )
  return preprocess, spec.image_size**2


def _default_workers(number):
  """Return one per core, or fewer where starting them is not worth it."""
  return max(1, min(_cores(), number // _IMAGES_WORTH_A_PROCESS))


def _cores():
  """Return how many cores this process may use, as far as the system says."""
  if hasattr(os, "sched_getaffinity"):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _check_space(half, needed):
  free = shutil.disk_usage(half).free
  if needed > free:
    raise errors.UserError(
      f"{half.parent}: {needed / 1e9:.3f} GB are needed, "
      f"{free / 1e9:.3f} GB are free; make room or choose another --data_dir "
      "(data.dir)"
    )


def _write_shards(missing, number, workers):
  """Write shards in worker processes, logging progress."""
  preparing = progress.Progress("Preparing", number)
  if workers == 1 or len(missing) <= 1:
    for shard in missing:
      preparing.add(_write(*shard))
    return
  # Spawned, since JAX's threads do not survive a fork.
  with concurrent.futures.ProcessPoolExecutor(
    min(workers, len(missing)),
    mp_context=multiprocessing.get_context("spawn"),
    initializer=_end_with_parent,
  ) as pool:
    running = [pool.submit(_write, *shard) for shard in missing]
    try:
      for future in concurrent.futures.as_completed(running):
        preparing.add(future.result())
    except concurrent.futures.BrokenExecutor as error:
      raise errors.RunError(
        "a worker was killed: out of memory or disk space? Run the same "
        "command again to resume; --workers=1 needs the least memory"
      ) from error
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise


def _end_with_parent():
  """End this worker when the main process is killed."""
  parent = multiprocessing.parent_process()

  def watch():
    parent.join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _write(part, target, preprocess, with_shape):
  """Write one shard and return its number of images; runs in a worker."""
  cv2.setNumThreads(1)
  prepared.write_shard(
    target,
    (
      prepared.serialize(preprocess(image), label, with_shape=with_shape)
      for image, label in part
    ),
  )
  return len(part)


def _check_unchanged(found, name, half):
  """Check that a folder's contents did not change while it was read."""
  if not found.name.startswith(name):
    raise errors.RunError(
      f"{half}: the original images changed meanwhile ({found.name} is now "
      f"{name}); run the same command again to prepare the new ones"
    )


def _finish(found, plan, path, spec):
  """Count every shard, write the metadata and rename the set."""
  half = prepared.incomplete(path)
  for part, lengths in plan["lengths"].items():
    names = prepared.shard_paths(path, part, len(lengths))
    for shard, length in zip(names, lengths, strict=True):
      number = prepared.count(half / shard.name)
      if number != length:
        raise errors.RunError(
          f"{half / shard.name}: {number} images, not {length}; run the same "
          "command again to make it anew"
        )
  size, with_shape = spec.image_size, bool(spec.whole)
  prepared.write_metadata(
    path,
    feature_dict=prepared.features(
      None if with_shape else size, found.channels, found.class_names
    ),
    lengths=plan["lengths"],
    metadata={
      "preprocessing": plan["preprocessing"],
      "originals": plan["originals"],
      "image_shape": (size, size, found.channels),
      "class_names": list(found.class_names),
    }
    | ({"with_shape": True} if with_shape else {}),
  )
  for name in ("plan.json", "verified.json", "lock"):
    (half / name).unlink(missing_ok=True)
  half.rename(path)
  logging.info("Prepared: %s.", path)
