"""Real networks on a given number of virtual CPU devices: for test_layouts.py.

python -m tests.layouts DEVICES OUT.npz WHAT...

WHAT is one of "sample:BATCH:T:IMAGES", "gradient:BATCH", "features",
"inception"; the arrays are stored under these names. The number of devices has
to be chosen before JAX starts, so each layout is a process of its own.
"""

import os
import sys

if __name__ == "__main__":
  _DEVICES = f"--xla_force_host_platform_device_count={sys.argv[1]}"
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}"
  os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import optax

from cfgd import build
from cfgd.metrics import extract
from cfgd.models import feature_net
from cfgd.models import inception
from cfgd.runtime import distributed
from cfgd.runtime import xla
from cfgd.training import state as state_lib
from cfgd.training import steps
from configs import embedded


def random_params(params):
  """Return parameters without zeros, which last layers start at."""
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda leaf: leaf + 0.05 * rng.standard_normal(leaf.shape, np.float32),
    jax.device_get(params),
  )


def images():
  """Return the embedded training images and labels, uint8 and int32."""
  source = build.source(embedded.get_config(), "train")
  return source.read(np.arange(1000))


def sample(batch, num_steps, number):
  """Return guided samples of the embedded network, [number, H, W, C] uint8.

  Args:
    batch: images per device and call.
    num_steps: T.
    number: of images.
  """
  config = embedded.get_config()
  config.sampling.update({"batch_size": batch, "T": num_steps, "w": 1.0})
  params = random_params(build.initial_params(config))
  params = distributed.replicate_locally(params), None
  draw = build.sampler(config)
  rows = batch * jax.local_device_count()
  index = np.arange(number)
  parts = [
    draw(params, part, (part % 10).astype(np.int32))[0]
    for part in np.split(index, range(rows, number, rows))
  ]
  return np.concatenate(parts)


def gradient(batch):
  """Return the gradient of one training step, all of its numbers in a row."""
  config = embedded.get_config()
  # Keeps the gradient as its state, and changes no parameter.
  optimizer = optax.chain(optax.trace(0.0), optax.scale(0.0))
  step = steps.make_train_step(
    build.loss(config),
    optimizer,
    seed=0,
    ema_decay=0.9,
    ema_warmup=False,
  )
  params = random_params(build.initial_params(config))
  state = distributed.replicate(state_lib.create(params, optimizer))
  data = images()
  rows = {
    "image": data["image"][:batch],
    "label": data["label"][:batch],
    "row": np.arange(batch, dtype=np.int32),
  }
  rows = distributed.split(rows, jax.local_device_count())
  state, _ = step(state, rows, {"p_uncond": np.float32(0.1)})
  # As one: biases before a normalisation have no gradient but rounding.
  leaves = jax.tree.leaves(jax.device_get(state.opt_state[0].trace))
  return np.concatenate([leaf.ravel() for leaf in leaves])


def features():
  """Return (features, probabilities) of real images by the feature network."""
  network = feature_net.FeatureNet(32, 64, 10)
  data = images()["image"]
  params = random_params(
    network.init(jax.random.key(0), data[:1] / 1.0)["params"]
  )
  return extract.extract(network, params, data, batch_size=125)


def by_inception():
  """Return Inception's features of a few images, on weights drawn at random."""
  from tests.models import test_inception as golden

  folder = os.path.join(os.path.dirname(__file__), "golden")
  with np.load(os.path.join(folder, "inception_fid.npz")) as arrays:
    params = golden.draw_params(arrays)
  data = np.repeat(images()["image"][:16], 3, axis=-1)
  parts = extract.batches(inception.scorer("adm"), params, data, batch_size=2)
  return [np.concatenate(column) for column in zip(*parts, strict=True)]


def main(out, wanted):
  """Compute what is wanted and store it."""
  arrays = {}
  for what in wanted:
    name, *numbers = what.split(":")
    numbers = map(int, numbers)
    if name == "sample":
      arrays[what] = sample(*numbers)
    elif name == "gradient":
      arrays[what] = gradient(*numbers)
    else:
      compute = {"features": features, "inception": by_inception}[name]
      arrays |= {f"{what}_{i}": part for i, part in enumerate(compute())}
  np.savez(out, **arrays)


if __name__ == "__main__":
  xla.set_options()
  main(sys.argv[2], sys.argv[3:])
