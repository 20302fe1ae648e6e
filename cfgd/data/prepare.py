"""Prepare a data set: crop and resize its originals once, with all cores.

Every shard is written whole or not at all and kept: the same call again makes
the missing ones. The set gets its name when all have been counted.
"""

import concurrent.futures
import contextlib
import fcntl
import functools
import itertools
import json
import multiprocessing
import os
import shutil
import threading
import time

from absl import logging
import cv2
import numpy as np

from cfgd.data import catalog
from cfgd.data import images
from cfgd.data import prepared
from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import files

# Shards of a part: at most so many, and none of fewer images. A killed
# preparation loses the shards under way.
_MOST_SHARDS = 128
_LEAST_IMAGES = 32
_IMAGES_WORTH_A_PROCESS = 500
_RECORD_OVERHEAD = 128  # bytes: label, names of the features, index
_SHARD_OVERHEAD = 2 * 2**16  # ArrayRecord fills up its blocks
_PROGRESS_SECONDS = 10.0
_USUAL_ASPECT = 1.4  # of photographs: an estimate of the space they need


def ensure(source, *, image_size, crop, data_dir, background, random_crop=0.0):
  """Prepare a data set that training names and that is not prepared yet.

  Not ImageNet: its archives have to be shown, see experiments.prepare_data.
  """
  if not catalog.is_prepared_on_demand(source):
    return
  if distributed.is_lead():
    prepare(
      source,
      image_size=image_size,
      crop=crop,
      data_dir=data_dir,
      background=background,
      random_crop=random_crop,
      manual_dir="",
      workers=0,
      allow_other=False,
    )
  distributed.barrier("data set")


def prepare(
  source,
  *,
  image_size,
  crop,
  data_dir,
  manual_dir,
  workers,
  allow_other,
  background="white",
  random_crop=0.0,
):
  """Prepare a data set, or go on where a killed preparation stopped.

  Args:
    source: data.source of the config.
    image_size: side of the images; 0: as the name says.
    crop: side of the central square that is kept; 0 is the shorter side.
    data_dir: folder of data sets; "" is TFDS's own.
    manual_dir: where ImageNet's archives are, or TFDS's manual downloads.
    workers: processes; 0: one for each core.
    allow_other: take archives of ImageNet that are not the official ones.
    background: colour behind what is transparent.
    random_crop: not 0: keep whole training images for random crops with at
      least this share of the shorter side.

  Returns:
    Path of the set.

  Raises:
    errors.UserError: originals missing or damaged, no space, or a set begun or
      made from other originals.
  """
  image_size = catalog.size_to_prepare(source, image_size)
  where = {"data_dir": data_dir, "background": background}
  path, metadata = catalog.find_prepared(
    source,
    image_size=image_size,
    crop=crop,
    random_crop=random_crop,
    **where,
  )
  half = prepared.incomplete(path)
  find = functools.partial(
    catalog.find,
    source,
    **where,
    manual_dir=manual_dir,
    allow_other=allow_other,
    verified=half / "verified.json",
  )
  if metadata is not None:
    if metadata["preprocessing"].startswith("imagenet."):
      _check_others(path, metadata, find, allow_other)
    logging.info("Prepared already: %s (%s).", path, metadata["preprocessing"])
    return path
  with _alone(half):
    found = find()
    sides = {
      "size": image_size,
      "crop": crop,
      "whole": images.whole_side(image_size, random_crop),
    }
    earlier = catalog.earlier_set(
      found,
      image_size=image_size,
      crop=crop,
      data_dir=data_dir,
      whole=sides["whole"],
    )
    if earlier and _is_of(earlier, found, sides):
      prepared.write_contents(earlier, found.fingerprint)
      logging.info("Prepared already, with the same pixels: %s.", earlier)
      _remove_if_empty(half)
      return earlier
    plan = _plan(found, sides)
    _claim(half, plan)
    _make(found, plan, path, sides, workers)
    _check_unchanged(found, catalog.name_of(source, **where), half)
    _finish(found, plan, path, sides)
  return path


def _is_of(path, found, sides):
  """Say whether a set has the pixels that its originals have now."""
  metadata = prepared.read_metadata(path, command="this command")
  named = images.preprocessing_id(found.earlier, **sides)
  if metadata["preprocessing"] != named or prepared.read_contents(path):
    return False
  number = sum(map(len, found.parts.values()))
  logging.info("Comparing %d images with those of %s.", number, path)
  progress = _Progress(number)
  for part, of in found.parts.items():
    there = prepared.Prepared(path, part, metadata)
    preprocess, _ = _preprocessing(part, **sides)
    for row, (image, label) in enumerate(of):
      example = there[row]
      if example["label"] != label:
        return False
      if not np.array_equal(example["image"], preprocess(image)):
        return False
      progress(1)
  return True


def _check_others(path, metadata, find, allow_other):
  """Do not take a set of some archives for that of others."""
  if not allow_other or find().fingerprint != metadata["originals"]:
    raise errors.UserError(
      f"{path}: was prepared from other archives of ImageNet's structure "
      f"({metadata['preprocessing']}); remove it or choose another --data_dir"
    )


@contextlib.contextmanager
def _alone(half):
  """Keep other processes of this machine from preparing the same set."""
  half.mkdir(parents=True, exist_ok=True)
  with open(half / "lock", "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise errors.UserError(
        f"{half}: another process is preparing this set; wait for it"
      ) from error
    try:
      yield
    except BaseException:
      _remove_if_empty(half)
      raise


def _remove_if_empty(half):
  """Leave nothing behind where the originals were found wanting."""
  if {path.name for path in half.iterdir()} == {"lock"}:
    (half / "lock").unlink()
    for folder in (half, half.parent, half.parent.parent):
      if list(folder.iterdir()):
        break
      folder.rmdir()


def _plan(found, sides):
  """Return what the set will be made of, as JSON has it."""
  return {
    "preprocessing": images.preprocessing_id(found.name, **sides),
    "originals": found.fingerprint,
    "lengths": {part: _lengths(len(of)) for part, of in found.parts.items()},
  }


def _lengths(number):
  """Return the sizes of the shards of so many images."""
  shards = max(1, min(_MOST_SHARDS, number // _LEAST_IMAGES))
  edges = [number * i // shards for i in range(shards + 1)]
  return [stop - start for start, stop in itertools.pairwise(edges)]


def _claim(half, plan):
  """Make sure that what was begun here was the same."""
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


def _make(found, plan, path, sides, workers):
  """Write the missing shards."""
  half = prepared.incomplete(path)
  for stale in half.glob(".tmp-*"):
    stale.unlink()
  missing, total, needed = [], 0, 0
  for part, lengths in plan["lengths"].items():
    starts = [0, *itertools.accumulate(lengths)]
    total += starts[-1]
    preprocess, pixels = _preprocessing(part, **sides)
    record = int(pixels * found.channels) + _RECORD_OVERHEAD
    for i, shard in enumerate(prepared.shard_paths(path, part, len(lengths))):
      target = half / shard.name
      if prepared.count(target) != lengths[i]:
        of = found.parts[part][starts[i] : starts[i + 1]]
        missing.append((of, target, preprocess))
        needed += lengths[i] * record + _SHARD_OVERHEAD
  number = sum(len(of) for of, *_ in missing)
  _check_space(half, needed)
  logging.info(
    "Preparing %d images as %s in %s; %d are there.",
    *(total, plan["preprocessing"], path, total - number),
  )
  workers = workers or _processes_for(number)
  _run(missing, number, workers, with_shape=bool(sides["whole"]))


def _preprocessing(part, *, size, crop, whole):
  """Return what is done to an image of a part, and its usual pixels."""
  if whole and part == "train":
    usual = whole**2 * (1 if crop else _USUAL_ASPECT)
    how = {"crop": crop, "side": whole}
    return functools.partial(images.preprocess_whole, **how), usual
  return functools.partial(images.preprocess, crop=crop, size=size), size**2


def _processes_for(number):
  """Return one for each core, where starting them is worth it."""
  cores = len(os.sched_getaffinity(0))
  return max(1, min(cores, number // _IMAGES_WORTH_A_PROCESS))


def _check_space(half, needed):
  free = shutil.disk_usage(half).free
  if needed > free:
    raise errors.UserError(
      f"{half.parent}: {needed / 1e9:.3f} GB are needed, "
      f"{free / 1e9:.3f} GB are free; make room or choose another --data_dir "
      "(data.dir)"
    )


def _run(missing, number, workers, **how):
  """Write shards in processes, and say how far it is."""
  progress = _Progress(number)
  if workers == 1 or len(missing) <= 1:
    for shard in missing:
      progress(_write(*shard, **how))
    return
  # Started afresh: JAX's threads do not survive a fork.
  with concurrent.futures.ProcessPoolExecutor(
    min(workers, len(missing)),
    mp_context=multiprocessing.get_context("spawn"),
    initializer=_end_with_parent,
  ) as pool:
    running = [pool.submit(_write, *shard, **how) for shard in missing]
    try:
      for future in concurrent.futures.as_completed(running):
        progress(future.result())
    except concurrent.futures.BrokenExecutor as error:
      raise errors.RunError(
        "a worker was ended: no memory or no space left? The same command goes "
        "on; --workers=1 needs the least memory"
      ) from error
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise


class _Progress:
  """Log images, rate and time to go."""

  def __init__(self, total):
    self._total, self._done = total, 0
    self._start, self._said = time.monotonic(), None

  def __call__(self, number):
    self._done += number
    now = time.monotonic()
    if self._said is None:  # too early for a rate: workers have just started
      self._said = now
    if now - self._said < _PROGRESS_SECONDS and self._done < self._total:
      return
    self._said = now
    rate = self._done / (now - self._start)
    logging.info(
      "%d of %d images, %.0f images/s, %.0f s to go.",
      *(self._done, self._total, rate, (self._total - self._done) / rate),
    )


def _end_with_parent():
  """End this worker when the preparation is killed."""
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
  """Make sure that a folder holds what it held before its files were read."""
  if not found.name.startswith(name):
    raise errors.RunError(
      f"{half}: the original images changed meanwhile ({found.name} is {name} "
      "now); the same command again prepares what is there"
    )


def _finish(found, plan, path, sides):
  """Count every shard, write the metadata and give the set its name."""
  half = prepared.incomplete(path)
  for part, lengths in plan["lengths"].items():
    names = prepared.shard_paths(path, part, len(lengths))
    for shard, length in zip(names, lengths, strict=True):
      number = prepared.count(half / shard.name)
      if number != length:
        raise errors.RunError(
          f"{half / shard.name}: {number} images, not {length}; the same "
          "command again makes it anew"
        )
  size, with_shape = sides["size"], bool(sides["whole"])
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
