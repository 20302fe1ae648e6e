"""Building blocks of the ADM networks (Dhariwal & Nichol, arXiv:2105.05233).

Module and parameter names are guided-diffusion's, with "_" for "." before a
number, so a published weight's name follows from its path in the tree. `dtype`
applies to matmuls and convolutions; parameters, GroupNorm, softmax and the time
embedding are always float32. float32 products are exact to float32, see
`precision_of`.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfgd.models import convolution
from cfgd.runtime import target
from cfgd.runtime import xla

# PyTorch's default for Conv2d and Linear, U(+-1/sqrt(fan_in)), which ADM keeps.
_KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_NUM_GROUPS = 32
_EPSILON = 1e-5


def precision_of(dtype):
  """Return the `precision` of products of a dtype.

  By default GPUs round float32 factors to TF32, and TPUs to bfloat16.
  """
  exact = jnp.dtype(dtype) == jnp.float32
  return jax.lax.Precision.HIGHEST if exact else None


def conv(
  features, size, name, dtype, zero=False, how=convolution.general_dilated
):
  """Make a [size, size] convolution; `how` is a function of `convolution`."""
  return nn.Conv(
    features,
    (size, size),
    padding="SAME",
    dtype=dtype,
    precision=precision_of(dtype),
    conv_general_dilated=how,
    kernel_init=nn.initializers.zeros if zero else _KERNEL_INIT,
    name=name,
  )


def dense(features, name, dtype, zero=False):
  """Make a linear layer over the last axis."""
  return nn.Dense(
    features,
    dtype=dtype,
    precision=precision_of(dtype),
    kernel_init=nn.initializers.zeros if zero else _KERNEL_INIT,
    name=name,
  )


def time_embedding(time, width):
  """Embed times [B], 0 to 1000, as sinusoids [B, width], cosines first."""
  half = width // 2
  frequencies = jnp.exp(-math.log(10_000) / half * jnp.arange(half))
  angles = time.astype(jnp.float32)[:, None] * frequencies[None]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


@jax.custom_vjp
def upsample(x):
  """Double height and width by repetition."""
  batch, height, width, channels = x.shape
  x = jnp.broadcast_to(
    x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels)
  )
  return x.reshape(batch, 2 * height, 2 * width, channels)


@jax.custom_vjp
def downsample(x):
  """Halve height and width by 2x2 means."""
  batch, height, width, channels = x.shape
  assert height % 2 == 0, x.shape
  assert width % 2 == 0, x.shape
  if target.platform() == "cpu":
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.mean(axis=(2, 4))
  # TPU's compiler fuses a window with its neighbours, but reorders the pixels
  # of those six axes.
  window = (1, 2, 2, 1)
  total = jax.lax.reduce_window(
    x.astype(jnp.float32), 0.0, jax.lax.add, window, window, "VALID"
  )
  return (total / 4).astype(x.dtype)


# Each is the other's transpose but for a power of two, which rounds nothing.
upsample.defvjp(lambda x: (upsample(x), ()), lambda _, g: (4 * downsample(g),))
downsample.defvjp(
  lambda x: (downsample(x), ()), lambda _, g: (upsample(g) / 4,)
)


_RESAMPLE = {"none": lambda x: x, "up": upsample, "down": downsample}


class GroupNorm(nn.Module):
  """Normalise 32 groups of channels in float32, optionally with FiLM."""

  dtype: Any

  @nn.compact
  def __call__(self, x, film_scale=None, film_shift=None):
    """Return GN(x) * (1 + film_scale) + film_shift, [B, H, W, C] of `dtype`.

    FiLM's scale and shift are None or [B, C].
    """
    channels = x.shape[-1]
    assert channels % _NUM_GROUPS == 0, (channels, _NUM_GROUPS)
    weight = self.param("scale", nn.initializers.ones, (channels,))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    low = x.dtype == jnp.bfloat16
    # Once: the gradients of its two uses cancel, and are added before rounding.
    x = x.astype(jnp.float32)
    mean, variance = self._moments(x, low)
    # One multiply and one add per pixel, which XLA fuses with the SiLU that
    # follows; separate normalise, affine and FiLM passes would cost memory.
    a = jax.lax.rsqrt(variance + _EPSILON) * weight  # [B, C]
    b = bias - mean * a
    if film_scale is not None:
      a, b = a * (1.0 + film_scale), b * (1.0 + film_scale) + film_shift
    a, b = xla.materialize((a, b))  # once, not for each pixel
    return (x * a[:, None, None] + b[:, None, None]).astype(self.dtype)

  def _moments(self, x, low):
    """Return the mean and variance of each channel's group, [B, C] each.

    Args:
      x: [B, H, W, C] in float32.
      low: whether x was bfloat16.
    """
    batch, channels = x.shape[0], x.shape[-1]
    grouped = (batch, _NUM_GROUPS, channels // _NUM_GROUPS)
    # Each way reads x once and keeps E[x^2] - E[x]^2 from cancelling where a
    # channel's mean is far from zero.
    moments = _moments_of_few_digits if low else _moments_about_a_pixel
    channel_mean, inside = moments(x)
    channel_mean = channel_mean.reshape(grouped)
    mean = channel_mean.mean(axis=-1, keepdims=True)  # [B, G, 1]
    # Variance within the channels plus variance between them.
    between = jnp.square(channel_mean - mean)
    variance = jnp.maximum(inside, 0.0).reshape(grouped) + between
    variance = variance.mean(axis=-1, keepdims=True)
    return tuple(
      jnp.broadcast_to(moment, grouped).reshape(batch, channels)
      for moment in (mean, variance)
    )


def _moments_about_a_pixel(x):
  """Return mean and variance of each channel, [B, C], of float32 pixels."""
  origin = jax.lax.stop_gradient(x[:, :1, :1])
  offset = x - origin
  mean, square = xla.materialize(
    (offset.mean(axis=(1, 2)), jnp.square(offset).mean(axis=(1, 2)))
  )
  return mean + origin[:, 0, 0], square - jnp.square(mean)


def _moments_of_few_digits(x):
  """Return mean and variance of each channel, [B, C], of bfloat16 pixels.

  Numbers of eight binary digits add up exactly in float32, so the squares are
  added in two such parts, and nothing is lost where E[x]^2 is subtracted. That
  needs no origin: to subtract one, TPU's compiler would write x in float32
  first, while these sums are part of the convolution that makes x.
  """
  pixels = x.shape[1] * x.shape[2]
  square = jnp.square(x)
  fine = jax.lax.stop_gradient(square - _eight_digits(square))
  total, coarse, fine = xla.materialize(
    tuple(part.sum(axis=(1, 2)) for part in (x, square - fine, fine))
  )
  near = jax.lax.stop_gradient(_eight_digits(total / pixels))
  rest = (total - pixels * near) / pixels  # mean - near
  variance = ((coarse - pixels * jnp.square(near)) + fine) / pixels
  return near + rest, variance - rest * (2 * near + rest)


def _eight_digits(x):
  """Round float32 as bfloat16 would, which no compiler takes away."""
  return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def dropout(x, keys, rate):
  """Zero elements of x [B, H, ...] with probability `rate`, scale up the rest.

  Each example has its own key; `keys` is [B], or None for no dropout. The
  probability is rounded to 1/65536.
  """
  if keys is None or rate == 0.0:
    return x
  dropped = min(round(rate * 2**16), 2**16 - 1)

  def kept(key):
    # Two random integers below 65536 from each 32-bit word.
    height, *others = x.shape[1:]
    words = jax.random.bits(key, (-(-height // 2), *others), jnp.uint32)
    halves = words & 0xFFFF, words >> 16
    return jnp.concatenate([half >= dropped for half in halves])[:height]

  # Numbers, unlike bool, get x's layout on TPUs. Without the barrier every
  # reader draws anew, within its convolution.
  mask = jax.vmap(kept)(keys).astype(x.dtype)
  mask = jax.lax.optimization_barrier(mask)
  scaled = x.astype(jnp.float32) / (1.0 - dropped / 2**16)
  return (scaled * mask).astype(x.dtype)


class ResBlock(nn.Module):
  """BigGAN residual block with FiLM conditioning.

  Attributes:
    features: channels of the result.
    resample: "none", "up" or "down".
    dropout: probability before the last convolution.
    dtype: of matmuls and convolutions.
    copies: the batch consists of this many copies of one.
    own: channels of x, the first, in which the copies differ; unused if there
      is one.
  """

  features: int
  resample: str
  dropout: float
  dtype: Any
  copies: int = 1
  own: int = 0

  @nn.compact
  def __call__(self, x, embedding, dropout_keys):
    """Map x [B, H, W, C] to [B, H', W', features].

    The embedding [B, E] is of time and label; `dropout_keys` is [B] or None.
    """
    resample = _RESAMPLE[self.resample]
    h = nn.silu(GroupNorm(self.dtype, name="in_layers_0")(x))
    x = resample(x)
    if self.resample == "up" and convolution.skips_zeros():
      after = convolution.of_upsampled
    else:
      h, after = resample(h), self._of_copies(channels=x.shape[-1])
    h = conv(self.features, 3, "in_layers_2", self.dtype, how=after)(h)

    film = dense(2 * self.features, "emb_layers_1", self.dtype)(
      nn.silu(embedding)
    )
    scale, shift = jnp.split(film.astype(jnp.float32), 2, axis=-1)
    h = nn.silu(GroupNorm(self.dtype, name="out_layers_0")(h, scale, shift))
    h = dropout(h, dropout_keys, self.dropout)
    h = conv(self.features, 3, "out_layers_3", self.dtype, zero=True)(h)

    if x.shape[-1] != self.features:
      of_copies = self._of_copies()
      x = conv(self.features, 1, "skip_connection", self.dtype, how=of_copies)(
        x
      )
    assert h.shape == x.shape, (h.shape, x.shape)
    return xla.materialize(x + h)

  def _of_copies(self, *, channels=None):
    """Return how to convolve x; `channels` of a normalised one.

    GroupNorm makes all channels of a group differ if one does.
    """
    if self.copies == 1:
      return convolution.general_dilated
    group = channels // _NUM_GROUPS if channels else 1
    own = -(-self.own // group) * group
    return functools.partial(convolution.of_copies, copies=self.copies, own=own)


def attention_implementation(platform, capability, dtype, tokens, head_width):
  """Return "cudnn" where cuDNN's fused attention works, else None.

  The limits are those of `check_is_flash_attention` in JAX's
  cudnn/fused_attention_stablehlo.py, for the forward and the backward pass,
  since any network may be differentiated later (training, classifier guidance):

  - tokens: an odd number is refused in training ("Unsupported sequence
    length"). That check is meant for attention with a bias, but JAX passes an
    empty array where there is none.
  - head_width: a multiple of 8, up to 128, or 256 on Hopper. JAX also allows
    256 on later GPUs; cuDNN's backward pass does so on Hopper alone.

  Args:
    platform: of the backend, "cpu", "gpu" or "tpu".
    capability: a GPU's CUDA compute capability, such as "9.0"; anything but a
      number is a GPU without cuDNN.
    dtype: of queries, keys and values.
    tokens: number of queries, and of keys.
    head_width: channels of one head.
  """
  try:
    major = int(str(capability).split(".")[0])
  except ValueError:
    return None
  if platform != "gpu" or major < 8:
    return None
  if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
    return None
  widest = 256 if major == 9 else 128
  fits = tokens % 2 == 0 and head_width % 8 == 0 and head_width <= widest
  return "cudnn" if fits else None


def _attend(q, k, v):
  """Attend with float32 softmax; q, k, v are [B, tokens, heads, width]."""
  implementation = attention_implementation(
    target.platform(),
    target.capability(),
    q.dtype,
    tokens=q.shape[1],
    head_width=q.shape[-1],
  )
  if implementation is None:
    return _attend_by_xla(q, k, v)
  return jax.nn.dot_product_attention(q, k, v, implementation=implementation)


@jax.custom_vjp
def _attend_by_xla(q, k, v):
  """Attend by matrix products, with the least memory per pair of tokens.

  The softmax is normalised after the product with v: one division per token.
  The backward pass gets the weights as `dtype` has them: float32 ones would be
  most of what attention reads and writes on a TPU.
  """
  return _attend_forward(q, k, v)[0]


def _attend_forward(q, k, v):
  """Return the output and what `_attend_backward` needs."""
  q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # [B, heads, tokens, width]
  q = q * q.shape[-1] ** -0.5
  logits = _matmul(q, k.swapaxes(2, 3))
  weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
  weights = weights.astype(v.dtype)
  # Of the rounded weights, so that they are a mean of v to the last digit.
  total = weights.astype(jnp.float32).sum(axis=-1, keepdims=True)
  out = _matmul(weights, v) / total  # [B, heads, tokens, width]
  return out.astype(v.dtype).swapaxes(1, 2), (q, k, v, weights, total, out)


def _attend_backward(residuals, g):
  """Return the gradients of q, k and v.

  With p = weights / total, the logits' gradient is p (dp - sum of p dp over the
  keys), and that sum is g times the output: with g rounded as in dp, since what
  all values have in common must cancel.
  """
  q, k, v, weights, total, out = residuals
  g = (g.swapaxes(1, 2).astype(jnp.float32) / total).astype(v.dtype)
  mean = (g.astype(jnp.float32) * out).sum(axis=-1, keepdims=True)
  from_weights = _matmul(g, v.swapaxes(2, 3)) - mean
  from_logits = (weights.astype(jnp.float32) * from_weights).astype(v.dtype)
  dq = _matmul(from_logits, k) * q.shape[-1] ** -0.5
  dk = _matmul(from_logits.swapaxes(2, 3), q)
  dv = _matmul(weights.swapaxes(2, 3), g)
  return tuple(d.astype(v.dtype).swapaxes(1, 2) for d in (dq, dk, dv))


_attend_by_xla.defvjp(_attend_forward, _attend_backward)


def _matmul(a, b):
  """Multiply [..., M, K] and [..., K, N] to float32."""
  return jnp.matmul(
    a, b, precision=precision_of(a.dtype), preferred_element_type=jnp.float32
  )


class AttentionBlock(nn.Module):
  """Self-attention over all pixels with a residual connection.

  Attributes:
    num_heads: number of heads.
    new_order: split q, k, v before the heads (ADM-64), not after them (ADM-128,
      "legacy"). Only matters for imported weights.
    dtype: of matmuls.
  """

  num_heads: int
  new_order: bool
  dtype: Any

  @nn.compact
  def __call__(self, x):
    """Map [B, H, W, C] to the same shape."""
    batch, height, width, channels = x.shape
    assert channels % self.num_heads == 0, (channels, self.num_heads)
    head = channels // self.num_heads
    h = GroupNorm(self.dtype, name="norm")(x)
    h = h.reshape(batch, height * width, channels)
    qkv = xla.tokens_minor(dense(3 * channels, "qkv", self.dtype)(h))
    tokens = (batch, height * width, self.num_heads, head)
    if not self.new_order:
      qkv = qkv.reshape(*tokens[:-1], 3 * head)
    q, k, v = (part.reshape(tokens) for part in jnp.split(qkv, 3, axis=-1))
    h = _attend(q, k, v)  # [B, HW, heads, head]
    h = h.reshape(batch, height * width, channels)
    h = dense(channels, "proj_out", self.dtype, zero=True)(h)
    return xla.materialize(x + h.reshape(x.shape))


class AttentionPool(nn.Module):
  """Linear readout of all pixels by attention from their mean (CLIP's pool).

  Attributes:
    features: size of the result.
    head_width: channels of a head.
    dtype: of matmuls.
  """

  features: int
  head_width: int
  dtype: Any

  @nn.compact
  def __call__(self, x):
    """Map [B, H, W, C] to [B, features]."""
    batch, height, width, channels = x.shape
    assert channels % self.head_width == 0, (channels, self.head_width)
    heads = channels // self.head_width
    x = x.reshape(batch, height * width, channels).astype(jnp.float32)
    x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
    position = self.param(
      "positional_embedding",
      nn.initializers.normal(channels**-0.5),
      (channels, x.shape[1]),
    )
    qkv = dense(3 * channels, "qkv_proj", self.dtype)(x + position.T)
    qkv = qkv.reshape(batch, x.shape[1], 3, heads, self.head_width)
    q, k, v = (qkv[:, :, i] for i in range(3))
    # Only the mean's output is used. One query needs no fused kernel.
    h = _attend_by_xla(q[:, :1], k, v)
    h = h.reshape(batch, channels)
    return dense(self.features, "c_proj", self.dtype)(h)
