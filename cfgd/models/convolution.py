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
    (to_x,) = jax.linear_transpose(lambda x: convolve(x, kernel), x)(g)
    return to_x, kernel_gradient(
      x, g, size=kernel.shape[0], precision=precision
    )

  plain.defvjp(forward, backward)
  return plain


def kernel_gradient(x, g, *, size, precision=None):
  """Return the gradient of a convolution with respect to its kernel.

  One product over all pixels for each row of the kernel: x, moved by each of
  the row's offsets and laid side by side, times g.

  Args:
    x: [B, H, W, I] input.
    g: [B, H, W, O] gradient of the output, of stride 1 and padding "SAME".
    size: k of the square kernel, odd.
    precision: of the products.

  Returns:
    [k, k, I, O].
  """
  _, height, width, channels = x.shape
  pad = size // 2
  # Channels first: the products run along contiguous pixels.
  x = jnp.pad(jnp.moveaxis(x, 3, 0), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
  g = g.reshape(-1, g.shape[-1])  # [BHW, O]

  def row(i):
    moved = [x[:, :, i : i + height, j : j + width] for j in range(size)]
    # The barrier keeps XLA from gathering every pixel inside of the product.
    stacked = jax.lax.optimization_barrier(jnp.concatenate(moved))
    stacked = stacked.reshape(size * channels, -1)  # [kI, BHW]
    product = jnp.matmul(stacked, g, precision=precision)
    return product.reshape(size, channels, -1)

  return jnp.stack([row(i) for i in range(size)])
