"""Train a data set's own feature network once, and keep it."""

import dataclasses
import functools
import hashlib
import io
import json
from typing import Any
from typing import NamedTuple

from absl import logging
from etils import epath
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cfgd import identity
from cfgd.data import pipeline
from cfgd.data import pixels
from cfgd.metrics import extract
from cfgd.models import feature_net
from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import files
from cfgd.runtime import preemption
from cfgd.runtime import shared
from cfgd.training import state as state_lib
from cfgd.training import steps as steps_lib

# A feature counts as dead if its standard deviation is below this part of the
# largest one: it contributes to no distance.
_DEAD = 1e-3


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How the network is built and trained: `metrics.feature_net`.

  The learning rate of Adam decays to 0 with a cosine.
  """

  seed: int
  width: int
  num_features: int
  learning_rate: float
  batch_size: int
  steps: int


class Trained(NamedTuple):
  """A FeatureNet, its parameters, a hash of them, and feature_net.json."""

  network: Any
  params: Any
  digest: str
  about: dict


def ensure(folder, train, held_out, recipe):
  """Return the Trained network of a Recipe, training it first if need be.

  Args:
    folder: folder of networks; each has a subfolder named by a hash of its
      settings, with feature_net.npz and feature_net.json.
    train: source of training images, see data.sources.
    held_out: source that measures its accuracy and its dead features.
    recipe: Recipe.
  """
  network = feature_net.FeatureNet(
    recipe.width, recipe.num_features, train.num_classes
  )
  settings = {
    "architecture": feature_net.ARCHITECTURE,
    "preprocessing": train.preprocessing,
    **dataclasses.asdict(recipe),
  }
  path = epath.Path(folder) / identity.digest(settings) / "feature_net.npz"
  if not distributed.by_lead(path.exists):
    shared.check(path.parent)
    params = _train(network, train, recipe)
    distributed.by_lead(
      lambda: _save(path, network, params, held_out, settings)
    )
  data = distributed.in_all(path.read_bytes)
  about = distributed.in_all(path.with_suffix(".json").read_text)
  with np.load(io.BytesIO(data)) as arrays:
    params = flax.traverse_util.unflatten_dict(dict(arrays), sep="/")
  return Trained(
    network,
    params,
    hashlib.sha256(data).hexdigest()[:8],
    json.loads(about),
  )


def _loss(network, params, keys, batch, traced):
  """Return the cross entropy [B], as a loss of `training.losses`."""
  del keys, traced
  x = pixels.to_x(batch["image"])
  _, logits = network.apply({"params": params}, x)
  labels = batch["label"]
  values = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return values, {}


def _train(network, source, recipe):
  """Return trained parameters (their moving average) as NumPy arrays."""
  logging.info("Training the feature network: %d steps.", recipe.steps)
  optimizer = state_lib.make_optimizer(
    learning_rate=recipe.learning_rate,
    b1=0.9,
    b2=0.99,
    eps=1e-8,
    weight_decay=0.0,
    warmup_steps=0,
    decay_steps=recipe.steps,
    decay="cosine",
  )

  step = steps_lib.make_train_step(
    functools.partial(_loss, network),
    optimizer,
    seed=recipe.seed,
    ema_decay=0.99,
    ema_warmup=True,
  )
  example = jnp.zeros((1, *source.image_shape))
  params = network.init(jax.random.key(recipe.seed), example)["params"]
  state = distributed.replicate(state_lib.create(params, optimizer))
  batches = pipeline.batches(
    source,
    seed=recipe.seed,
    batch_size=recipe.batch_size,
    flip=False,
    first_step=0,
    num_threads=2,
    prefetch=4,
  )
  for _ in range(recipe.steps):
    # The step waits for all processes: none may fail alone before it.
    batch = distributed.in_all(functools.partial(next, batches))
    state, metrics = step(state, batch, {})
    jax.block_until_ready(metrics)
    preemption.check("the feature network is not trained")
  if metrics["skipped"]:
    raise errors.NonFiniteError(
      f"{metrics['skipped']} steps of the feature network were not finite"
    )
  return jax.device_get(state.ema_params)


def _save(path, network, params, held_out, settings):
  """Write feature_net.json and, last, the weights."""
  held_out = held_out.read(np.arange(len(held_out)))
  features, probabilities = extract.extract(
    network, params, held_out["image"], batch_size=settings["batch_size"]
  )
  accuracy = np.mean(probabilities.argmax(axis=-1) == held_out["label"])
  dead = count_dead(features)
  logging.info(
    "Feature network: held-out accuracy %.3f, %d of %d features dead.",
    *(accuracy, dead, features.shape[1]),
  )
  about = settings | {
    "heldout_accuracy": float(accuracy),
    "dead_features": dead,
  }
  files.write_atomic(
    path.with_suffix(".json"), json.dumps(about, indent=2) + "\n"
  )
  with files.open_atomic(path) as file:
    np.savez(file, **flax.traverse_util.flatten_dict(params, sep="/"))


def count_dead(features):
  """Return how many columns of features [N, F] are (nearly) constant."""
  spread = features.std(axis=0)
  return int(np.sum(spread <= _DEAD * spread.max()))
