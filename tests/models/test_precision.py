"""What is rounded to bfloat16 and what must not be, read from the jaxpr."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgd.models import blocks
from cfgd.models import feature_net
from cfgd.models import inception
from tests.models import golden_weights
from tests.models import networks

# What statistics and softmax are made of.
_REDUCING = {
  *("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "cumsum"),
  *("exp", "exp2", "log", "log1p", "rsqrt", "sqrt", "square", "integer_pow"),
}
# Modules whose sums are a convolution's or matmul's: the bias gradient.
_LINEAR = {
  *("input_blocks_0_0", "out_2", "in_layers_2", "out_layers_3"),
  *("emb_layers_1", "skip_connection", "qkv", "proj_out"),
  *("qkv_proj", "c_proj", "upsample"),
}


def walk(jaxpr, scope=""):
  """Yield (equation, innermost module), recursively."""
  for equation in jaxpr.eqns:
    inner = f"{scope}/{equation.source_info.name_stack}".rstrip("/")
    yield equation, inner.split("/")[-1]
    for value in equation.params.values():
      for part in value if isinstance(value, tuple | list) else [value]:
        part = getattr(part, "jaxpr", part)  # of a closed jaxpr
        if hasattr(part, "eqns"):
          yield from walk(part, inner)


def equations(jaxpr):
  """Yield (primitive, innermost module, dtypes of the inputs)."""
  for equation, module in walk(jaxpr):
    dtypes = {getattr(v.aval, "dtype", None) for v in equation.invars}
    yield equation.primitive.name, module, dtypes


def make_jaxpr(network, *, gradient):
  """Return the jaxpr of the loss or of its gradient."""
  z, time = jnp.zeros((2, 8, 8, 3)), jnp.zeros(2)
  rest = (jnp.zeros(2, int),) if hasattr(network, "num_labels") else ()
  keys = jax.vmap(jax.random.key)(jnp.arange(2))
  params = networks.shapes_of(network, 8)

  def loss(params, z):
    out = network.apply({"params": params}, z, time, *rest, keys)
    return (out**2).sum()

  function = jax.grad(loss, argnums=(0, 1)) if gradient else loss
  return jax.make_jaxpr(function)(params, z).jaxpr


def trace(network, *, gradient):
  """Return the equations of the loss or of its gradient."""
  return list(equations(make_jaxpr(network, gradient=gradient)))


def half_statistics(traced):
  """Return what of norms and softmax is computed in bfloat16."""
  return [
    (primitive, module)
    for primitive, module, dtypes in traced
    if primitive in _REDUCING
    and jnp.dtype(jnp.bfloat16) in dtypes
    and not (primitive == "reduce_sum" and module in _LINEAR)
  ]


_NETWORKS = pytest.mark.parametrize(
  "make", [networks.make_unet, networks.make_classifier]
)


@_NETWORKS
@pytest.mark.parametrize(
  ("remat", "gradient"), [(False, False), (False, True), (True, True)]
)
def test_norms_and_softmax_are_float32(make, remat, gradient):
  traced = trace(make(dtype="bfloat16", remat=remat), gradient=gradient)
  assert not half_statistics(traced)
  # They were there to be seen.
  float32 = {
    primitive
    for primitive, _, dtypes in traced
    if dtypes == {jnp.dtype(jnp.float32)}
  }
  assert {"rsqrt", "exp", "reduce_max", "reduce_sum"} <= float32


class _HalfGroupNorm(blocks.GroupNorm):
  """A mistake: statistics in the compute dtype."""

  @nn.compact
  def __call__(self, x, film_scale=None, film_shift=None):
    shape = x.shape
    x = x.astype(self.dtype).reshape(shape[0], -1, 32, shape[-1] // 32)
    x -= x.mean(axis=(1, 3), keepdims=True)
    x *= jax.lax.rsqrt((x * x).mean(axis=(1, 3), keepdims=True) + 1e-5)
    return x.reshape(shape)


class _HalfAffine(blocks.GroupNorm):
  """A mistake that only the gradient has: it sums over pixels in bfloat16."""

  @nn.compact
  def __call__(self, x, film_scale=None, film_shift=None):
    weight = self.param("scale", nn.initializers.ones, x.shape[-1:])
    return x.astype(self.dtype) * weight.astype(self.dtype)


def _half_softmax(q, k, v):
  logits = jnp.einsum("bqhc,bkhc->bhqk", q, k)
  return jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(logits), v)


@pytest.mark.parametrize(
  ("name", "mistake", "gradient", "primitive"),
  [
    ("GroupNorm", _HalfGroupNorm, False, "rsqrt"),
    ("GroupNorm", _HalfAffine, True, "reduce_sum"),
    ("_attend", _half_softmax, False, "exp"),
    ("_attend", _half_softmax, False, "reduce_max"),
  ],
)
def test_the_check_sees_mistakes(
  monkeypatch, name, mistake, gradient, primitive
):
  monkeypatch.setattr(blocks, name, mistake)
  traced = trace(networks.make_unet(dtype="bfloat16"), gradient=gradient)
  assert primitive in {found for found, _ in half_statistics(traced)}


@_NETWORKS
def test_products_are_bfloat16_except_the_embedding_of_time(make):
  traced = trace(make(dtype="bfloat16"), gradient=False)
  for primitive, module, dtypes in traced:
    if primitive in ("conv_general_dilated", "dot_general"):
      exact = module in ("time_embed_0", "time_embed_2")
      assert dtypes == {jnp.dtype("float32" if exact else "bfloat16")}, module


@_NETWORKS
def test_bfloat16_stays_near_float32(make):
  params, _ = golden_weights.fill(networks.shapes_of(make(), 8))
  z = np.random.default_rng(0).standard_normal((4, 8, 8, 3), np.float32)
  inputs = [z, jnp.array([0.0, 10.5, 500.0, 999.0])]
  if hasattr(make(), "num_labels"):
    inputs.append(jnp.arange(4))
  exact, half = (
    networks.jit(make(dtype=dtype).apply)({"params": params}, *inputs)
    for dtype in ("float32", "bfloat16")
  )
  assert half.dtype == jnp.float32
  error = np.sqrt(np.mean((half - exact) ** 2) / np.mean(exact**2))
  assert 0 < error < 2e-2


def precisions(jaxpr):
  """Return {(module, precision)} of all products, and how many there are."""
  found = [
    (module, equation.params["precision"])
    for equation, module in walk(jaxpr)
    if equation.primitive.name in ("conv_general_dilated", "dot_general")
  ]
  return set(found), len(found)


_HIGHEST = (jax.lax.Precision.HIGHEST,) * 2


@_NETWORKS
@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
def test_float32_products_are_float32_on_every_platform(make, remat, gradient):
  jaxpr = make_jaxpr(make(dtype="float32", remat=remat), gradient=gradient)
  found, number = precisions(jaxpr)
  assert {precision for _, precision in found} == {_HIGHEST}
  # Attention's two products, at one resolution or more, and all layers.
  assert number > (60 if gradient else 20)


@_NETWORKS
@pytest.mark.parametrize("gradient", [False, True])
def test_bfloat16_products_keep_the_default(make, gradient):
  found, _ = precisions(make_jaxpr(make(dtype="bfloat16"), gradient=gradient))
  for module, precision in found:
    exact = module in ("time_embed_0", "time_embed_2")
    assert precision == (_HIGHEST if exact else None), module


@pytest.mark.parametrize(
  ("network", "shape"),
  [
    (feature_net.FeatureNet(4, 8, 10), (2, 8, 8, 1)),
    (inception.Inception(), (1, inception.SIZE, inception.SIZE, 3)),
  ],
)
@pytest.mark.parametrize("gradient", [False, True])
def test_features_are_float32_on_every_platform(network, shape, gradient):
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  params = jax.eval_shape(network.init, jax.random.key(0), x)

  def loss(params, x):
    return sum(map(jnp.sum, network.apply(params, x)))

  function = jax.grad(loss, argnums=(0, 1)) if gradient else loss
  found, number = precisions(jax.make_jaxpr(function)(params, x).jaxpr)
  assert {precision for _, precision in found} == {_HIGHEST}
  assert number >= 5
