"""Inception against pytorch-fid's network, and what comes before it.

golden/inception_fid.npz was computed by pytorch-fid's network of torchvision's
blocks in float64 on weights drawn by a rule, see its README.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgd.convert import inception as inception_weights
from cfgd.models import inception

_GAIN = 2**0.5


def _draw(name, shape):
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  normal = rng.standard_normal(shape)
  leaf = name.rsplit(".", 1)[-1]
  if leaf in ("bias", "running_mean"):
    weight = 0.1 * normal
  elif leaf == "running_var":
    weight = np.abs(1.0 + 0.1 * normal) + 0.1
  elif len(shape) == 1:
    weight = 1.0 + 0.1 * normal
  else:
    weight = _GAIN * normal / np.sqrt(np.prod(shape[1:]))
  return weight.astype(np.float32)


@pytest.fixture(scope="module")
def arrays(golden):
  with golden("inception_fid") as loaded:
    return dict(loaded)


def draw_params(arrays):
  """Return Inception's parameters, drawn by the golden arrays' rule."""
  state = {}
  for name, shape, total in zip(
    *(arrays[f"param_{what}"] for what in ("names", "shapes", "sum")),
    strict=True,
  ):
    if not name.endswith("num_batches_tracked"):
      state[str(name)] = _draw(name, shape[shape > 0])
      np.testing.assert_allclose(
        state[name].sum(dtype=np.float64), total, rtol=1e-9, atol=1e-9
      )
  return inception_weights.convert(state, path="golden weights")


@pytest.fixture(scope="module")
def params(arrays):
  return draw_params(arrays)


def deviation(found, wanted):
  wanted = np.asarray(wanted, np.float64)
  return np.abs(found - wanted).max() / np.sqrt(np.square(wanted).mean())


def test_parity(params, arrays):
  protocol = inception.PROTOCOLS["pytorch_fid"]
  network = jax.jit(inception.Inception().apply)
  tags = ("img64", "img32")
  x = jnp.concatenate(
    [protocol.prepare(arrays[f"{tag}_u8_nhwc"]) for tag in tags]
  )
  outputs = network({"params": params}, x)
  assert outputs.features.dtype == jnp.float32
  bias = params["fc"]["bias"]
  for name, limit, found in (
    ("pool3_f64", 3e-5, outputs.features),
    ("logits_f64", 3e-5, outputs.logits),
    ("logits_nobias_f64", 3e-5, outputs.logits - bias),
    ("softmax_f64", 5e-5, jax.nn.softmax(outputs.logits)),
    ("softmax_nobias_f64", 5e-5, jax.nn.softmax(outputs.logits - bias)),
    # The reference is in float32 here.
    ("mixed6d_b1x1_first7", 5e-5, outputs.spatial),
  ):
    for tag, part in zip(tags, np.split(np.asarray(found), 2), strict=True):
      assert deviation(part, arrays[f"{tag}_{name}"]) < limit, (tag, name)


@pytest.mark.parametrize(("name", "bias"), [("adm", 0), ("pytorch_fid", 1)])
def test_the_logits_of_adm_are_without_bias(name, bias):
  network = inception.Inception(inception.PROTOCOLS[name].logit_bias)
  x = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
  shapes = jax.eval_shape(network.init, jax.random.key(0), x)["params"]
  assert len(shapes["fc"]) == 1 + bias


@pytest.mark.parametrize("tag", ["img64", "img32"])
def test_pytorch_resize(arrays, tag):
  protocol = inception.PROTOCOLS["pytorch_fid"]
  x = arrays[f"{tag}_u8_nhwc"].astype(np.float32) / 255
  resized = protocol.resize(jnp.asarray(x))[:, ::23, ::23]
  np.testing.assert_allclose(
    resized, arrays[f"{tag}_resized_sub_nhwc"], rtol=0, atol=1e-5
  )


def tf1_resize(image):
  """TensorFlow 1's bilinear resize of [H, W, C] by its definition, slowly."""
  height, width, _ = image.shape
  out = np.empty((299, 299, image.shape[2]))
  for i in range(299):
    y = float(np.float32(i) * (np.float32(height) / np.float32(299)))
    top, bottom = int(y), min(int(y) + 1, height - 1)
    row = image[top] + (image[bottom] - image[top]) * (y - top)
    for j in range(299):
      x = float(np.float32(j) * (np.float32(width) / np.float32(299)))
      left, right = int(x), min(int(x) + 1, width - 1)
      out[i, j] = row[left] + (row[right] - row[left]) * (x - left)
  return out


@pytest.mark.parametrize("shape", [(64, 64), (32, 40), (299, 299), (301, 7)])
def test_tf1_resize(shape):
  image = np.random.default_rng(0).uniform(size=(*shape, 1))
  resize = jax.jit(inception.PROTOCOLS["adm"].resize)
  found = resize(jnp.asarray(image[None], jnp.float32))[0]
  np.testing.assert_allclose(found, tf1_resize(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
  ("protocol", "ends"),
  [("adm", (-1.0, 0.0, 127 / 128)), ("pytorch_fid", (-1.0, 1 / 255, 1.0))],
)
def test_range(protocol, ends):
  values = np.array([0, 128, 255], np.uint8)
  images = np.broadcast_to(values[:, None, None, None], (3, 5, 4, 3))
  x = inception.PROTOCOLS[protocol].prepare(jnp.asarray(images))
  assert x.shape == (3, 299, 299, 3)
  for row, value in zip(x, ends, strict=True):
    np.testing.assert_allclose(row, value, rtol=0, atol=1e-6)
