"""Pixels, uint8 in [0, 255], and data x, float32 in [-1, 1]."""

import jax.numpy as jnp


def to_x(pixels):
  """Map uint8 pixels to [-1, 1]."""
  return pixels.astype(jnp.float32) / 127.5 - 1.0


def from_x(x):
  """Clip data to [-1, 1] and round it to the nearest pixels."""
  return jnp.clip(jnp.rint((x + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
