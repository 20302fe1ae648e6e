"""The Inception-v3 of FID and IS, and the preprocessing of its images.

The network is TensorFlow's graph of 2015-12-05, which defines FID. It differs
from the published Inception-v3 in average pools that exclude the padding, in a
maximum pool where the last block should average, and in its 1008 classes. The
converter folds batch normalisation into the convolutions.
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

# TF32 or bfloat16 products would change the features by one per cent.
_PRECISION = jax.lax.Precision.HIGHEST


class Outputs(NamedTuple):
  """The network's outputs for a batch.

  Attributes:
    features: [B, 2048] average over space of the last block: FID's pool3.
    spatial: [B, 2023] seven channels of Mixed_6d at 17x17: sFID's.
    logits: [B, 1008].
  """

  features: jax.Array
  spatial: jax.Array
  logits: jax.Array


# Layers. 1x1 convolutions are written as matrix products and pools as shifts,
# both of which are faster on CPUs.


def _linear(x, name, features):
  """Apply a 1x1 convolution, inside a compact module."""
  return nn.Dense(features, precision=_PRECISION, name=name)(x)


def _conv(x, name, features, kernel=(1, 1), stride=1, padding="SAME"):
  """Apply a convolution and ReLU, inside a compact module."""
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
  """Apply `_conv` repeatedly; layers are its arguments."""
  for layer in layers:
    x = _conv(x, *layer)
  return x


def _windows(x, axis, stride):
  """Return the three shifts of x in a window of 3 along an axis."""
  size = (x.shape[axis] - 3) // stride * stride + 1
  return [
    jax.lax.slice_in_dim(x, i, i + size, stride=stride, axis=axis)
    for i in range(3)
  ]


def _max_pool(x, stride=2):
  """Return the maximum over 3x3 pixels; stride 1 keeps x's size."""
  if stride == 1:
    border = ((0, 0), (1, 1), (1, 1), (0, 0))
    x = jnp.pad(x, border, constant_values=-jnp.inf)
  for axis in (1, 2):
    x = functools.reduce(jnp.maximum, _windows(x, axis, stride))
  return x


def _average_pool(x):
  """Return the average over those of 3x3 pixels that are in the image."""
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


# Blocks, named as in torchvision and the published weights.


class _Mixed(nn.Module):
  """Concatenate chains of convolutions and a pool.

  Attributes:
    branches: layers of each chain, see `_chain`.
    pool_features: of the average pool's branch; 0 is a maximum pool instead.
  """

  branches: tuple
  pool_features: int = 0

  @nn.compact
  def __call__(self, x):
    """Return the block's output, and that of its first branch."""
    outputs = [_chain(x, *layers) for layers in self.branches]
    if self.pool_features:
      pooled = _pooled_branch(x, self.pool_features)
    else:
      pooled = _max_pool(x)
    return jnp.concatenate([*outputs, pooled], axis=-1), outputs[0]


_DOUBLE = (("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, (3, 3)))
_MIXED_A = (
  (("branch1x1", 64),),
  (("branch5x5_1", 48), ("branch5x5_2", 64, (5, 5))),
  (*_DOUBLE, ("branch3x3dbl_3", 96, (3, 3))),
)
_MIXED_B = (
  (("branch3x3", 384, (3, 3), 2, "VALID"),),
  (*_DOUBLE, ("branch3x3dbl_3", 96, (3, 3), 2, "VALID")),
)
_MIXED_D = (
  (("branch3x3_1", 192), ("branch3x3_2", 320, (3, 3), 2, "VALID")),
  (
    ("branch7x7x3_1", 192),
    ("branch7x7x3_2", 192, (1, 7)),
    ("branch7x7x3_3", 192, (7, 1)),
    ("branch7x7x3_4", 192, (3, 3), 2, "VALID"),
  ),
)


def _mixed_c(width):
  return (
    (("branch1x1", 192),),
    (
      ("branch7x7_1", width),
      ("branch7x7_2", width, (1, 7)),
      ("branch7x7_3", 192, (7, 1)),
    ),
    (
      ("branch7x7dbl_1", width),
      ("branch7x7dbl_2", width, (7, 1)),
      ("branch7x7dbl_3", width, (1, 7)),
      ("branch7x7dbl_4", width, (7, 1)),
      ("branch7x7dbl_5", 192, (1, 7)),
    ),
  )


class _MixedE(nn.Module):
  """The last two blocks, whose branches fork."""

  max_pool: bool

  @nn.compact
  def __call__(self, x):
    once = _conv(x, "branch3x3_1", 384)
    twice = _chain(x, ("branch3x3dbl_1", 448), ("branch3x3dbl_2", 384, (3, 3)))
    if self.max_pool:
      pooled = _conv(_max_pool(x, stride=1), "branch_pool", 192)
    else:
      pooled = _pooled_branch(x, 192)
    branches = (
      _conv(x, "branch1x1", 320),
      _conv(once, "branch3x3_2a", 384, (1, 3)),
      _conv(once, "branch3x3_2b", 384, (3, 1)),
      _conv(twice, "branch3x3dbl_3a", 384, (1, 3)),
      _conv(twice, "branch3x3dbl_3b", 384, (3, 1)),
      pooled,
    )
    return jnp.concatenate(branches, axis=-1)


class Inception(nn.Module):
  """The network, on images prepared by a `Protocol`.

  Attributes:
    logit_bias: add the last layer's bias to the logits.
  """

  logit_bias: bool = True

  @nn.compact
  def __call__(self, x):
    """Return the Outputs of x [B, 299, 299, 3], in about [-1, 1]."""
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
      x, _ = _Mixed(_MIXED_A, pool_features, name=f"Mixed_{name}")(x)
    x, _ = _Mixed(_MIXED_B, name="Mixed_6a")(x)
    first = {}
    for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
      block = _Mixed(_mixed_c(width), 192, name=f"Mixed_{name}")
      x, first[name] = block(x)
    x, _ = _Mixed(_MIXED_D, name="Mixed_7a")(x)
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
  """TensorFlow 1: output pixel i samples at i * scale."""
  return np.arange(SIZE, dtype=np.float32) * (np.float32(size) / SIZE)


def _half_pixel(size):
  """PyTorch, align_corners=False: pixel centres are aligned."""
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
  """How images become the network's input, and which logits IS uses.

  Attributes:
    name: recorded with every result.
    positions: size -> [299] sampling positions in the input, rounded to float32
      exactly as in the original.
    scale: map of v in [0, 255] before resizing.
    finish: map after resizing, to about [-1, 1].
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
    """Return the network's input, [B, 299, 299, 3] float32.

    Args:
      images: [B, H, W, 3] uint8.
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
  """Return a scorer for `metrics.extract` by the protocol of this name.

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
