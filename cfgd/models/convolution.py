"""Convolutions that XLA:CPU computes rightly and fast.

XLA:CPU has two ways to convolve. YNNPACK's is slow for the gradient of a
kernel; Eigen's is fast there, and wrong in loops on several devices (see
docs/performance.md). So YNNPACK convolves, and the gradient of a kernel is
written as matrix products.
"""

import functools

import jax
import jax.numpy as jnp


def general_dilated(x, kernel, strides, padding, *, precision, **how):
  """Convolve, as `jax.lax.conv_general_dilated` does, for flax.linen.Conv.

  Args:
    x: [B, H, W, I].
    kernel: [k, k, I, O].
    strides: per spatial dimension.
    padding: of `jax.lax.conv_general_dilated`.
    precision: of the products, see `jax.lax.Precision`.
    **how: dimension numbers, dilations and groups.

  Returns:
    [B, H', W', O].
  """
  convolve = functools.partial(
    jax.lax.conv_general_dilated,
    window_strides=strides,
    padding=padding,
    precision=precision,
    **how,
  )
  if jax.default_backend() != "cpu" or not _is_plain(
    x, kernel, strides, padding
  ):
    return convolve(x, kernel)
  return _with_products(convolve, precision)(x, kernel)


def _is_plain(x, kernel, strides, padding):
  """Say whether the kernel is odd and square, and keeps height and width."""
  height, width = kernel.shape[:2]
  return (
    padding == "SAME"
    and tuple(strides) == (1, 1)
    and height == width
    and height % 2 == 1
    and x.dtype == jnp.float32
  )


def _with_products(convolve, precision):
  """Return the convolution (x, kernel) -> y, differentiated by products."""

  @jax.custom_vjp
  def plain(x, kernel):
    return convolve(x, kernel)

  def forward(x, kernel):
    return convolve(x, kernel), (x, kernel)

  def backward(residuals, g):
    x, kernel = residuals
    turned = jnp.flip(kernel, axis=(0, 1)).swapaxes(2, 3)  # [k, k, O, I]
    return convolve(g, turned), kernel_gradient(
      x, g, size=kernel.shape[0], precision=precision
    )

  plain.defvjp(forward, backward)
  return plain


def kernel_gradient(x, g, *, size, precision=None):
  """Return the gradient of a convolution with respect to its kernel.

  Args:
    x: [B, H, W, I] input.
    g: [B, H, W, O] gradient of the output, of stride 1 and padding "SAME".
    size: k of the square kernel, odd.
    precision: of the products.

  Returns:
    [k, k, I, O].
  """
  if x.shape[-1] <= g.shape[-1]:
    return _moved_products(x, g, size, precision)
  # Moving g by an offset is moving x by its opposite, and fewer channels.
  products = _moved_products(g, x, size, precision)
  return jnp.flip(products, axis=(0, 1)).swapaxes(2, 3)


def _moved_products(a, b, size, precision):
  """Return sum over images and pixels of a, moved by each offset, times b.

  One product over all pixels for each row of the kernel: a, moved by each of
  the row's offsets and laid side by side, times b.

  Args:
    a: [B, H, W, C].
    b: [B, H, W, D].
    size: offsets along each side, odd; the middle one moves nothing.
    precision: of the products.

  Returns:
    [size, size, C, D].
  """
  _, height, width, channels = a.shape
  pad = size // 2
  # Channels first: the products run along contiguous pixels.
  a = jnp.pad(jnp.moveaxis(a, 3, 0), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
  b = b.reshape(-1, b.shape[-1])  # [BHW, D]

  def row(i):
    moved = [a[:, :, i : i + height, j : j + width] for j in range(size)]
    # The barrier keeps XLA from gathering every pixel inside of the product.
    stacked = jax.lax.optimization_barrier(jnp.concatenate(moved))
    stacked = stacked.reshape(size * channels, -1)  # [size C, BHW]
    product = jnp.matmul(stacked, b, precision=precision)
    return product.reshape(size, channels, -1)

  return jnp.stack([row(i) for i in range(size)])
