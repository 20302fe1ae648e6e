"""The Inception-v3 of FID and IS, and what is done to images before it.

The network is that of TensorFlow's graph of 2015-12-05, which FID is defined
by. It differs from the published Inception-v3 in average pools that leave the
padding out, in a maximum where the last block should average, and in having
1008 classes. Batch normalisation is part of the convolutions here: the
converter folds it in.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

SIZE = 299
NUM_FEATURES = 2048
NUM_SPATIAL = 17 * 17 * 7
NUM_CLASSES = 1008

# TF32 or bfloat16 products would move the features by a per cent.
_PRECISION = jax.lax.Precision.HIGHEST


class Outputs(NamedTuple):
  """Hold what the network says of a batch.

  Attributes:
    features: [B, 2048] average over space of the last block: FID's pool3.
    spatial: [B, 2023] seven channels of Mixed_6d at 17x17: sFID's.
    logits: [B, 1008].
  """

  features: jax.Array
  spatial: jax.Array
  logits: jax.Array


# Layers. A 1x1 convolution is a matrix product, which CPUs compute faster when
# it is written as one; so are pools written as shifts.


def _linear(x, name, features):
  """Return the 1x1 convolution of x, inside a compact module."""
  return nn.Dense(features, precision=_PRECISION, name=name)(x)


def _conv(x, name, features, kernel=(1, 1), stride=1, padding="SAME"):
  """Return relu(convolution of x), inside a compact module."""
  if kernel == (1, 1):
    return nn.relu(_linear(x, name, features))
  convolve = nn.Conv(
    features,
    kernel,
    strides=stride,
    padding=padding,
    precision=_PRECISION,
    name=name,
  )
  return nn.relu(convolve(x))


def _chain(x, *layers):
  """Return `_conv` after `_conv`; layers are its arguments."""
  for layer in layers:
    x = _conv(x, *layer)
  return x


def _windows(x, axis, stride):
  """Return the three shifts of x that a window of 3 sees along an axis."""
  size = (x.shape[axis] - 3) // stride * stride + 1
  return [
    jax.lax.slice_in_dim(x, i, i + size, stride=stride, axis=axis)
    for i in range(3)
  ]


def _max_pool(x, stride=2):
  """Return the maximum over 3x3; with stride 1, of x's size."""
  if stride == 1:
    border = ((0, 0), (1, 1), (1, 1), (0, 0))
    x = jnp.pad(x, border, constant_values=-jnp.inf)
  for axis in (1, 2):
    x = functools.reduce(jnp.maximum, _windows(x, axis, stride))
  return x


def _average_pool(x):
  """Return the average over those of 3x3 that are inside the image."""
  inside = np.full(x.shape[1:3], 9.0, np.float32)
  for edge in (0, -1):
    inside[edge] *= 2 / 3
    inside[:, edge] *= 2 / 3
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  for axis in (1, 2):
    x = functools.reduce(jnp.add, _windows(x, axis, 1))
  return x / inside[:, :, None]


def _pooled_branch(x, features):
  # An average pool and a 1x1 convolution commute, and this order pools fewer
  # channels.
  return nn.relu(_average_pool(_linear(x, "branch_pool", features)))


def _join(*branches):
  return jnp.concatenate(branches, axis=-1)


# Blocks, named as in torchvision and the published weights.


class _MixedA(nn.Module):
  pool_features: int

  @nn.compact
  def __call__(self, x):
    return _join(
      _conv(x, "branch1x1", 64),
      _chain(x, ("branch5x5_1", 48), ("branch5x5_2", 64, (5, 5))),
      _chain(
        x,
        ("branch3x3dbl_1", 64),
        ("branch3x3dbl_2", 96, (3, 3)),
        ("branch3x3dbl_3", 96, (3, 3)),
      ),
      _pooled_branch(x, self.pool_features),
    )


class _MixedB(nn.Module):
  @nn.compact
  def __call__(self, x):
    return _join(
      _conv(x, "branch3x3", 384, (3, 3), 2, "VALID"),
      _chain(
        x,
        ("branch3x3dbl_1", 64),
        ("branch3x3dbl_2", 96, (3, 3)),
        ("branch3x3dbl_3", 96, (3, 3), 2, "VALID"),
      ),
      _max_pool(x),
    )


class _MixedC(nn.Module):
  width: int

  @nn.compact
  def __call__(self, x):
    """Return the block's output and that of its first branch."""
    width = self.width
    first = _conv(x, "branch1x1", 192)
    joined = _join(
      first,
      _chain(
        x,
        ("branch7x7_1", width),
        ("branch7x7_2", width, (1, 7)),
        ("branch7x7_3", 192, (7, 1)),
      ),
      _chain(
        x,
        ("branch7x7dbl_1", width),
        ("branch7x7dbl_2", width, (7, 1)),
        ("branch7x7dbl_3", width, (1, 7)),
        ("branch7x7dbl_4", width, (7, 1)),
        ("branch7x7dbl_5", 192, (1, 7)),
      ),
      _pooled_branch(x, 192),
    )
    return joined, first


class _MixedD(nn.Module):
  @nn.compact
  def __call__(self, x):
    return _join(
      _chain(
        x,
        ("branch3x3_1", 192),
        ("branch3x3_2", 320, (3, 3), 2, "VALID"),
      ),
      _chain(
        x,
        ("branch7x7x3_1", 192),
        ("branch7x7x3_2", 192, (1, 7)),
        ("branch7x7x3_3", 192, (7, 1)),
        ("branch7x7x3_4", 192, (3, 3), 2, "VALID"),
      ),
      _max_pool(x),
    )


class _MixedE(nn.Module):
  max_pool: bool

  @nn.compact
  def __call__(self, x):
    once = _conv(x, "branch3x3_1", 384)
    twice = _chain(x, ("branch3x3dbl_1", 448), ("branch3x3dbl_2", 384, (3, 3)))
    if self.max_pool:
      pooled = _conv(_max_pool(x, stride=1), "branch_pool", 192)
    else:
      pooled = _pooled_branch(x, 192)
    return _join(
      _conv(x, "branch1x1", 320),
      _conv(once, "branch3x3_2a", 384, (1, 3)),
      _conv(once, "branch3x3_2b", 384, (3, 1)),
      _conv(twice, "branch3x3dbl_3a", 384, (1, 3)),
      _conv(twice, "branch3x3dbl_3b", 384, (3, 1)),
      pooled,
    )


class Inception(nn.Module):
  """The network on images that are prepared, see `Protocol`.

  Attributes:
    logit_bias: add the last layer's bias to the logits.
  """

  logit_bias: bool = True

  @nn.compact
  def __call__(self, x):
    """Return features and logits.

    Args:
      x: [B, 299, 299, 3] in about [-1, 1].

    Returns:
      Outputs.
    """
    assert x.shape[1:] == (SIZE, SIZE, 3), x.shape
    x = _chain(
      x,
      ("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
      ("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
      ("Conv2d_2b_3x3", 64, (3, 3)),
    )
    x = _max_pool(x)
    x = _conv(x, "Conv2d_3b_1x1", 80)
    x = _max_pool(_conv(x, "Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"))
    for name, pool_features in (("5b", 32), ("5c", 64), ("5d", 64)):
      x = _MixedA(pool_features, name=f"Mixed_{name}")(x)
    x = _MixedB(name="Mixed_6a")(x)
    first = {}
    for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
      x, first[name] = _MixedC(width, name=f"Mixed_{name}")(x)
    x = _MixedD(name="Mixed_7a")(x)
    x = _MixedE(max_pool=False, name="Mixed_7b")(x)
    x = _MixedE(max_pool=True, name="Mixed_7c")(x)
    features = x.mean(axis=(1, 2))
    last = nn.Dense(
      NUM_CLASSES, self.logit_bias, precision=_PRECISION, name="fc"
    )
    # "mixed_6/conv:0"[..., :7] in the TensorFlow graph.
    spatial = first["6d"][..., :7].reshape(len(x), NUM_SPATIAL)
    return Outputs(features, spatial, last(features))


# Protocols.


def _asymmetric(size):
  """TensorFlow 1: output pixel i looks at i * scale."""
  return np.arange(SIZE, dtype=np.float32) * (np.float32(size) / SIZE)


def _half_pixel(size):
  """PyTorch, align_corners=False: the centres of pixels are aligned."""
  scale = np.float32(size) / np.float32(SIZE)
  centres = np.arange(SIZE, dtype=np.float32) + np.float32(0.5)
  return np.maximum(centres * scale - np.float32(0.5), np.float32(0))


def _resize_axis(x, axis, positions):
  low = np.floor(positions).astype(np.int32)
  high = np.minimum(low + 1, x.shape[axis] - 1)
  shape = [1] * x.ndim
  shape[axis] = SIZE
  weight = (positions - low).reshape(shape)
  below, above = (jnp.take(x, index, axis=axis) for index in (low, high))
  return below + (above - below) * weight


class Protocol(NamedTuple):
  """How images become the network's input, and which logits IS takes.

  Attributes:
    name: goes with every result.
    positions: size -> [299] where each output pixel looks in the input. Rounded
      to float32 as in the original, or the result would be another.
    scale: v in [0, 255], before resizing.
    finish: what is done after it, to about [-1, 1].
    logit_bias: see `Inception`.
  """

  name: str
  positions: Callable[[int], np.ndarray]
  scale: Callable[[jax.Array], jax.Array]
  finish: Callable[[jax.Array], jax.Array]
  logit_bias: bool

  def resize(self, x):
    """Resize [B, H, W, C] float32 bilinearly to [B, 299, 299, C]."""
    for axis in (2, 1):
      x = _resize_axis(x, axis, self.positions(x.shape[axis]))
    return x

  def prepare(self, images):
    """Return the network's input.

    Args:
      images: [B, H, W, 3] uint8.

    Returns:
      [B, 299, 299, 3] float32.
    """
    assert images.dtype == jnp.uint8, images.dtype
    return self.finish(self.resize(self.scale(images.astype(jnp.float32))))


PROTOCOLS = {
  protocol.name: protocol
  for protocol in (
    # The TensorFlow graph as guided-diffusion's evaluator runs it.
    Protocol(
      "adm",
      positions=_asymmetric,
      scale=lambda v: v,
      finish=lambda v: (v - 128.0) / 128.0,
      logit_bias=False,
    ),
    Protocol(
      "pytorch_fid",
      positions=_half_pixel,
      scale=lambda v: v / 255.0,
      finish=lambda v: 2.0 * v - 1.0,
      logit_bias=True,
    ),
  )
}


@functools.cache
def scorer(protocol):
  """Return the network by a protocol, as a scorer of `metrics.extract`.

  Args:
    protocol: name of one of PROTOCOLS.

  Returns:
    (params, images [B, H, W, 3] uint8) -> (features [B, 2048], probabilities
    [B, 1008], spatial features [B, 2023]) float32.
  """
  protocol = PROTOCOLS[protocol]
  network = Inception(protocol.logit_bias)

  def run(params, images):
    outputs = network.apply({"params": params}, protocol.prepare(images))
    probabilities = jax.nn.softmax(outputs.logits)
    return outputs.features, probabilities, outputs.spatial

  return run


def param_shapes():
  """Return the tree of ShapeDtypeStruct of the parameters."""
  x = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
  return jax.eval_shape(Inception().init, jax.random.key(0), x)["params"]
