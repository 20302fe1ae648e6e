"""Between pixels, uint8 in [0, 255], and data x, float32 in [-1, 1]."""

import jax.numpy as jnp


def to_x(pixels):
  """Map uint8 pixels to the data range."""
  return pixels.astype(jnp.float32) / 127.5 - 1.0


def from_x(x):
  """Map data to the nearest pixels; what lies outside is clipped."""
  return jnp.clip(jnp.rint((x + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
