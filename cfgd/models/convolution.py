"""Convolutions as the compilers compute them correctly and fast.

XLA:CPU convolves with YNNPACK or with Eigen. YNNPACK is slow for the gradient
of a kernel; Eigen is fast there, but wrong in loops on several devices (see
docs/performance.md). So YNNPACK convolves, and the kernel gradient is written
as matrix products. Elsewhere one after upsampling skips equal products.
"""

import functools

import jax
import jax.numpy as jnp

from cfgd.runtime import target


def general_dilated(x, kernel, strides, padding, *, precision, **how):
  """Convolve x [B, H, W, I] and kernel [k, k, I, O] to [B, H', W', O].

  Arguments are those of `jax.lax.conv_general_dilated`, as flax.linen.Conv
  passes them.
  """
  convolve = functools.partial(
    jax.lax.conv_general_dilated,
    window_strides=strides,
    padding=padding,
    precision=precision,
    **how,
  )
  if target.platform() != "cpu" or not _is_plain(x, kernel, strides, padding):
    return convolve(x, kernel)
  return _with_products(convolve, precision)(x, kernel)


def of_copies(x, kernel, strides, padding, *, copies, own, **how):
  """Convolve copies of a batch that differ in their first channels alone.

  The products of the other channels are computed once for all copies.

  Args:
    x: [copies B, H, W, I], copy by copy.
    kernel: [k, k, I, O].
    strides: as of `general_dilated`, like padding and the others.
    padding: see strides.
    copies: their number.
    own: channels that differ.
    **how: see strides.

  Returns:
    [copies B, H', W', O].
  """
  convolve = functools.partial(
    general_dilated, strides=strides, padding=padding, **how
  )
  first = x[: x.shape[0] // copies, ..., own:]
  shared = jnp.tile(convolve(first, kernel[:, :, own:]), (copies, 1, 1, 1))
  if not own:
    return shared
  return convolve(x[..., :own], kernel[:, :, :own]) + shared


def skips_zeros():
  """Return whether `of_upsampled` is faster here than upsampling first.

  TPU's and GPU's compilers multiply no zeros between dilated pixels; XLA:CPU's
  do.
  """
  return target.platform() != "cpu"


def of_upsampled(x, kernel, strides, padding, *, precision, **how):
  """Convolve x [B, H, W, I], doubled by repetition, to [B, 2H, 2W, O].

  Each output sees 2x2 different pixels, so the nine products per pixel of a 3x3
  kernel are four of sums of its weights: the transposed convolution by the
  kernel that is the given one applied to 2x2 ones.

  Arguments are those of `general_dilated`; the kernel is [3, 3, I, O].
  """
  assert kernel.shape[:2] == (3, 3), kernel.shape
  assert tuple(strides) == (1, 1), strides
  assert padding == "SAME", padding
  wide = kernel.astype(jnp.float32)
  for axis in (0, 1):
    after, before = ([(0, 0)] * 4 for _ in range(2))
    after[axis], before[axis] = (0, 1), (1, 0)
    wide = jnp.pad(wide, after) + jnp.pad(wide, before)
  how["lhs_dilation"] = (2, 2)
  return jax.lax.conv_general_dilated(
    x,
    wide.astype(kernel.dtype),  # [4, 4, I, O]
    window_strides=(1, 1),
    padding=((2, 2), (2, 2)),
    precision=precision,
    **how,
  )


def _is_plain(x, kernel, strides, padding):
  """Return whether the kernel is odd, square and keeps height and width."""
  height, width = kernel.shape[:2]
  return (
    padding == "SAME"
    and tuple(strides) == (1, 1)
    and height == width
    and height % 2 == 1
    and x.dtype == jnp.float32
  )


def _with_products(convolve, precision):
  """Return the convolution (x, kernel) -> y with matrix-product gradients."""

  @jax.custom_vjp
  def plain(x, kernel):
    return convolve(x, kernel)

  def forward(x, kernel):
    return convolve(x, kernel), (x, kernel)

  def backward(residuals, g):
    x, kernel = residuals
    rotated = jnp.flip(kernel, axis=(0, 1)).swapaxes(2, 3)  # [k, k, O, I]
    return convolve(g, rotated), _kernel_gradient(
      x, g, size=kernel.shape[0], precision=precision
    )

  plain.defvjp(forward, backward)
  return plain


def _kernel_gradient(x, g, *, size, precision):
  """Return the gradient [k, k, I, O] of a "SAME" convolution of stride 1.

  Of the input x [B, H, W, I] and the output's gradient g [B, H, W, O].
  """
  if x.shape[-1] <= g.shape[-1]:
    return _shifted_products(x, g, size, precision)
  # Shifting g is shifting x by the opposite offset, with fewer channels.
  products = _shifted_products(g, x, size, precision)
  return jnp.flip(products, axis=(0, 1)).swapaxes(2, 3)


def _shifted_products(a, b, size, precision):
  """Sum a [B, H, W, C], shifted by each offset, times b [B, H, W, D].

  Returns [size, size, C, D], summed over images and pixels; `size` is odd, and
  the middle offset is 0. One matrix product per row of the kernel, with the
  row's shifts of a stacked.
  """
  _, height, width, channels = a.shape
  pad = size // 2
  # Channels first: the products run along contiguous pixels.
  a = jnp.pad(jnp.moveaxis(a, 3, 0), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
  b = b.reshape(-1, b.shape[-1])  # [BHW, D]

  def row(i):
    shifted = [a[:, :, i : i + height, j : j + width] for j in range(size)]
    # The barrier keeps XLA from gathering pixels inside the product.
    stacked = jax.lax.optimization_barrier(jnp.concatenate(shifted))
    stacked = stacked.reshape(size * channels, -1)  # [size C, BHW]
    product = jnp.matmul(stacked, b, precision=precision)
    return product.reshape(size, channels, -1)

  return jnp.stack([row(i) for i in range(size)])
