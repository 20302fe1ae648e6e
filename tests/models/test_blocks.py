"""What the parts of the networks promise."""

import jax
from jax._src.cudnn import fused_attention_stablehlo
import jax.numpy as jnp
import numpy as np
import pytest

from cfgd import diffusion
from cfgd.models import blocks
from cfgd.runtime import target


@pytest.mark.parametrize("offset", [0, 3, 1000])
def test_group_norm_is_the_definition(offset):
  rng = np.random.default_rng(0)
  x = rng.normal(offset, 2, (2, 5, 5, 64)).astype(np.float32)
  scale, shift = np.random.default_rng(1).standard_normal((2, 2, 64))
  out, _ = blocks.GroupNorm("float32").init_with_output(
    jax.random.key(0), x, np.float32(scale), np.float32(shift)
  )
  groups = np.float64(x).reshape(2, 25, 32, 2)
  mean = groups.mean(axis=(1, 3), keepdims=True)
  variance = groups.var(axis=(1, 3), keepdims=True)
  normal = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
  desired = normal * (1 + scale[:, None, None]) + shift[:, None, None]
  # x * a + b: the rounding of x grows with the mean, the variance stays right.
  np.testing.assert_allclose(out, desired, atol=5e-5 + 2e-6 * offset)


def pixels(kind, side):
  rng = np.random.default_rng(0)
  shape = 2, side, side, 64
  if kind == "almost constant":
    x = np.where(rng.random(shape) < 1e-3, 16.125, 16.0)
  elif kind == "one pixel apart":
    x = np.full(shape, 256.0)
    x[:, 3, 5] = 258.0
  else:
    x = rng.normal(float(kind), 1, shape)
  return jnp.asarray(x, jnp.bfloat16)


# Also where bfloat16 hardly tells one pixel from the next.
@pytest.mark.parametrize("side", [64, 14])
@pytest.mark.parametrize(
  "kind", ["0", "3", "100", "1000", "almost constant", "one pixel apart"]
)
def test_group_norm_of_bfloat16_is_the_definition(kind, side):
  x = pixels(kind, side)
  norm = blocks.GroupNorm("float32")
  out, _ = jax.jit(norm.init_with_output)(jax.random.key(0), x)
  groups = np.float64(x).reshape(2, side * side, 32, 2)
  mean = groups.mean(axis=(1, 3), keepdims=True)
  deviation = np.sqrt(groups.var(axis=(1, 3), keepdims=True) + 1e-5)
  desired = ((groups - mean) / deviation).reshape(x.shape)
  # x * a + b in float32, and the variance to a few parts in 1e5.
  size = np.abs(desired).max() + (np.abs(mean) / deviation).max()
  np.testing.assert_allclose(
    out, desired, atol=3e-5 * np.abs(desired).max() + 2**-23 * size
  )


def test_a_norms_gradient_has_no_mean_of_its_cotangent():
  """What its two uses of x pass back cancels before bfloat16 rounds it."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((2, 16, 16, 64)), jnp.bfloat16)
  varying = rng.standard_normal(x.shape)
  norm = blocks.GroupNorm("bfloat16")
  variables = norm.init(jax.random.key(0), x)

  @jax.jit
  def gradient(g):
    _, pull_back = jax.vjp(lambda x: norm.apply(variables, x), x)
    return pull_back(jnp.asarray(g, jnp.bfloat16))[0]

  def error(mean):
    g = np.float64(jnp.asarray(varying + mean, jnp.bfloat16))
    groups = np.float64(x).reshape(2, 256, 32, 2)
    g = g.reshape(groups.shape)
    moments = {"axis": (1, 3), "keepdims": True}
    deviation = np.sqrt(groups.var(**moments) + 1e-5)
    normal = (groups - groups.mean(**moments)) / deviation
    part = (g * normal).mean(**moments)
    desired = (g - g.mean(**moments) - normal * part) / deviation
    difference = np.float64(gradient(g.reshape(x.shape))) - desired.reshape(
      x.shape
    )
    return np.linalg.norm(difference) / np.linalg.norm(desired)

  assert error(0.0) < 0.003
  assert error(8.0) < 0.003


def test_resampling_is_nearest_and_mean():
  x = np.arange(16.0).reshape(1, 4, 4, 1)
  np.testing.assert_array_equal(
    blocks.downsample(x)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]]
  )
  up = blocks.upsample(x)[0, :, :, 0]
  np.testing.assert_array_equal(up, np.kron(x[0, :, :, 0], np.ones((2, 2))))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("name", ["upsample", "downsample"])
def test_gradients_of_resampling(monkeypatch, platform, name):
  monkeypatch.setattr(target, "platform", lambda: platform)
  resample, rng = getattr(blocks, name), np.random.default_rng(0)
  x = np.float32(rng.standard_normal((2, 4, 6, 3)))
  out, pull_back = jax.vjp(resample, x)
  g = np.float32(rng.standard_normal(out.shape))
  move = np.float32(rng.standard_normal(x.shape))
  # The map is linear: <g, R move> is <R' g, move>.
  np.testing.assert_allclose(
    np.vdot(g, resample(move)), np.vdot(pull_back(g)[0], move), rtol=1e-4
  )


@pytest.mark.parametrize("height", [32, 5, 1])
@pytest.mark.parametrize("rate", [0.1, 0.75])
def test_dropout_keeps_the_mean_and_draws_each_pixel_apart(rate, height):
  keys = diffusion.image_keys(0, np.arange(4))
  x = jnp.ones((4, height, 32, 64))
  out = np.asarray(blocks.dropout(x, keys, rate))
  deviation = np.sqrt(rate * (1 - rate) / out.size)
  assert abs((out == 0).mean() - rate) < 4 * deviation
  np.testing.assert_allclose(out[out > 0], 1 / (1 - rate), rtol=1e-4)
  halves = out[:, : height // 2], out[:, -(-height // 2) :]
  both = ((halves[0] == 0) & (halves[1] == 0)).mean() if height > 1 else rate**2
  assert abs(both - rate**2) < 0.01 + 4 * deviation
  assert (out[0] != out[1]).any()


def test_dropout_in_64_bits_has_the_same_mask():
  keys = diffusion.image_keys(0, np.arange(2))
  x = jnp.ones((2, 8, 8, 32))
  desired = np.asarray(blocks.dropout(x, keys, 0.5))
  with jax.enable_x64(True):
    np.testing.assert_array_equal(blocks.dropout(x, keys, 0.5), desired)


def test_dropout_of_almost_everything_is_finite():
  keys = diffusion.image_keys(0, np.arange(1))
  out = blocks.dropout(jnp.ones((1, 8, 8, 32)), keys, 0.999999)
  assert np.isfinite(out).all()


@pytest.mark.parametrize(
  ("platform", "capability", "dtype", "tokens", "width", "implementation"),
  [
    ("cpu", None, "bfloat16", 64, 64, None),
    ("tpu", None, "bfloat16", 64, 64, None),
    ("gpu", "8.0", "bfloat16", 64, 64, "cudnn"),
    ("gpu", "8.6", "float16", 64, 128, "cudnn"),
    ("gpu", "9.0", "bfloat16", 64, 64, "cudnn"),
    ("gpu", "10.0", "bfloat16", 64, 128, "cudnn"),
    ("gpu", "9.0", "float32", 64, 64, None),
    ("gpu", "9.0", "bfloat16", 64, 60, None),
    ("gpu", "8.0", "bfloat16", 64, 136, None),
    ("gpu", "9.0", "bfloat16", 64, 136, "cudnn"),
    ("gpu", "9.0", "bfloat16", 64, 256, "cudnn"),
    ("gpu", "9.0", "bfloat16", 64, 264, None),
    ("gpu", "10.0", "bfloat16", 64, 256, None),
    ("gpu", "7.5", "bfloat16", 64, 64, None),
    ("gpu", "gfx942", "bfloat16", 64, 64, None),
    ("gpu", None, "bfloat16", 64, 64, None),
    # 5x5, 7x7 and 1x1 pixels, and their even neighbours.
    ("gpu", "9.0", "bfloat16", 25, 64, None),
    ("gpu", "8.0", "float16", 49, 64, None),
    ("gpu", "10.0", "bfloat16", 1, 64, None),
    ("gpu", "9.0", "bfloat16", 36, 64, "cudnn"),
    ("gpu", "9.0", "bfloat16", 2, 64, "cudnn"),
    ("gpu", "9.0", "bfloat16", 1024, 64, "cudnn"),
  ],
)
def test_cudnn_where_it_can(
  platform, capability, dtype, tokens, width, implementation
):
  actual = blocks.attention_implementation(
    platform, capability, dtype, tokens=tokens, head_width=width
  )
  assert actual == implementation


@pytest.mark.parametrize("tokens", [1, 2, 25, 36])
@pytest.mark.parametrize("width", [8, 60, 64, 136, 264])
def test_cudnn_is_chosen_where_jax_lets_it_train(monkeypatch, tokens, width):
  """Against what JAX says to the gradient on a Hopper GPU, traced without."""
  kernel = fused_attention_stablehlo
  monkeypatch.setattr(kernel, "check_cudnn_version", lambda: 91100)
  monkeypatch.setattr(kernel, "check_compute_capability", lambda _: True)

  def loss(q):
    return jax.nn.dot_product_attention(q, q, q, implementation="cudnn").sum()

  q = jnp.zeros((2, tokens, 1, width), jnp.bfloat16)
  try:
    jax.eval_shape(jax.grad(loss), q)
    desired = "cudnn"
  except NotImplementedError:
    desired = None
  actual = blocks.attention_implementation(
    "gpu", "9.0", "bfloat16", tokens=tokens, head_width=width
  )
  assert actual == desired


def definition(q, k, v):
  weights = jax.nn.softmax(jnp.einsum("bqhc,bkhc->bhqk", q, k) / 4.0)
  return jnp.einsum("bhqk,bkhc->bqhc", weights, v)


def attention_and_gradients(attend, size):
  rng = np.random.default_rng(0)
  q, k, v, cotangent = rng.standard_normal((4, 2, 12, 2, 16))
  arrays = (size * q, size * k, v, cotangent)
  if not jax.config.jax_enable_x64:
    arrays = [np.float32(array) for array in arrays]
  out, pull_back = jax.vjp(attend, *map(jnp.asarray, arrays[:3]))
  results = [out, *pull_back(jnp.asarray(arrays[3]))]
  return [np.asarray(array) for array in results]


# Saturated weights leave gradients that are differences of larger numbers.
@pytest.mark.parametrize(("size", "tolerance"), [(1.0, 1e-6), (5.0, 1e-5)])
def test_attention_is_the_definition(size, tolerance):
  with jax.enable_x64(True):
    desired = attention_and_gradients(definition, size)
  actual = attention_and_gradients(blocks._attend_by_xla, size)
  for one, other in zip(actual, desired, strict=True):
    assert one.dtype == jnp.float32
    assert np.linalg.norm(one - other) < tolerance * np.linalg.norm(other)


@pytest.mark.parametrize("mean", [0, 30, 1000])
def test_attention_in_bfloat16_cancels_what_values_have_in_common(mean):
  rng = np.random.default_rng(0)
  q, k, v, g = rng.standard_normal((4, 2, 64, 2, 16))
  arrays = [jnp.asarray(array, jnp.bfloat16) for array in (q, k, v + mean, g)]

  def gradients(attend, dtype):
    *inputs, g = (jnp.asarray(array, dtype) for array in arrays)
    out, pull_back = jax.vjp(attend, *inputs)
    return [np.float64(array) for array in (out, *pull_back(g))]

  with jax.enable_x64(True):
    desired = gradients(definition, "float64")
  actual = gradients(blocks._attend_by_xla, "bfloat16")
  for one, other in zip(actual, desired, strict=True):
    assert np.linalg.norm(one - other) < 2**-8 * np.linalg.norm(other)


def test_attention_bears_large_logits():
  desired = attention_and_gradients(definition, 1e3)
  actual = attention_and_gradients(blocks._attend_by_xla, 1e3)
  np.testing.assert_allclose(actual[0], desired[0], rtol=1e-6)
  assert all(np.isfinite(array).all() for array in actual)


@pytest.mark.parametrize("implementation", [None, "cudnn"])
def test_attention_is_computed_by_what_was_chosen(monkeypatch, implementation):
  # cuDNN itself needs a GPU: here only that it would be asked.
  asked = []

  def attention(q, k, v, *, implementation):
    asked.append(implementation)
    return q

  monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
  monkeypatch.setattr(
    blocks,
    "_attend_by_xla",
    lambda q, k, v: attention(q, k, v, implementation=None),
  )
  monkeypatch.setattr(
    blocks, "attention_implementation", lambda *_, **__: implementation
  )
  block = blocks.AttentionBlock(2, True, "bfloat16")
  x = jnp.zeros((1, 2, 2, 32))
  jax.eval_shape(block.init, jax.random.key(0), x)
  assert asked == [implementation]
