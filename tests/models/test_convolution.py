"""The kernel gradient of a convolution by matrix products."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgd.models import blocks
from cfgd.models import convolution
from cfgd.runtime import target

_HOW = {
  "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
  "precision": jax.lax.Precision.HIGHEST,
}


def by_numpy(x, g, size):
  """Return sum over images and pixels of x, moved by (i, j), times g."""
  x, g = np.asarray(x, np.float64), np.asarray(g, np.float64)
  pad = size // 2
  height, width = x.shape[1:3]
  x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  return np.array(
    [
      [
        np.einsum("bhwi,bhwo->io", x[:, i : i + height, j : j + width], g)
        for j in range(size)
      ]
      for i in range(size)
    ]
  )


@pytest.mark.parametrize(
  ("size", "height", "width", "channels", "features"),
  [(3, 10, 10, 32, 64), (3, 5, 7, 1, 32), (3, 8, 8, 32, 1), (1, 6, 6, 8, 4)],
)
def test_gradients_are_those_of_a_convolution(
  size, height, width, channels, features
):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (4, height, width, channels))
  kernel = jax.random.normal(keys[1], (size, size, channels, features))
  g = jax.random.normal(keys[2], (4, height, width, features))

  def gradients(convolve):
    call = functools.partial(convolve, **_HOW)
    y, pull = jax.vjp(lambda *a: call(*a, (1, 1), "SAME"), x, kernel)
    return y, *pull(g)

  ours = gradients(convolution.general_dilated)
  theirs = gradients(jax.lax.conv_general_dilated)
  for one, other in zip(ours[:2], theirs[:2], strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
  exact = by_numpy(x, g, size)
  np.testing.assert_allclose(ours[2], exact, atol=2e-6 * np.abs(exact).max())


@pytest.mark.parametrize(
  ("backend", "convolutions"), [("cpu", 2), ("gpu", 3), ("tpu", 3)]
)
def test_the_kernel_is_convolved_for_elsewhere(
  monkeypatch, backend, convolutions
):
  monkeypatch.setattr(target, "platform", lambda: backend)
  network = blocks.conv(32, 3, "c", jnp.float32)
  x = jnp.ones((2, 8, 8, 32))
  variables = jax.eval_shape(network.init, jax.random.key(0), x)

  def loss(variables, x):
    return jnp.square(network.apply(variables, x)).sum()

  program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(variables, x)
  assert str(program).count("conv_general_dilated[") == convolutions


def test_an_upsampled_convolution_is_one_after_upsampling():
  rng = np.random.default_rng(0)
  x = np.float32(rng.standard_normal((2, 5, 7, 4)))
  kernel = np.float32(rng.standard_normal((3, 3, 4, 6)))
  cotangent = np.float32(rng.standard_normal((2, 10, 14, 6)))

  def results(convolve, x):
    call = functools.partial(convolve, **_HOW)
    out, pull_back = jax.vjp(lambda *a: call(*a, (1, 1), "SAME"), x, kernel)
    return out, *pull_back(cotangent)

  out, of_x, of_kernel = results(convolution.of_upsampled, x)
  doubled = x.repeat(2, axis=1).repeat(2, axis=2)
  desired = results(jax.lax.conv_general_dilated, doubled)
  np.testing.assert_allclose(out, desired[0], atol=2e-5)
  np.testing.assert_allclose(of_kernel, desired[2], atol=1e-4)
  summed = desired[1].reshape(2, 5, 2, 7, 2, 4).sum(axis=(2, 4))
  np.testing.assert_allclose(of_x, summed, atol=1e-4)
