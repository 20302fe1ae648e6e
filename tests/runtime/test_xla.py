"""Options of the compiler: where they are set, and that they do something."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgd.models import blocks
from cfgd.runtime import xla

OURS = "--xla_disable_hlo_passes=cse_barrier_expander"


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def flags_after(monkeypatch, before):
  monkeypatch.setenv("XLA_FLAGS", before)
  xla.set_options()
  return os.environ["XLA_FLAGS"]


def test_options_are_added_once_and_yours_hold(monkeypatch):
  flags = flags_after(monkeypatch, "--xla_force_host_platform_device_count=2")
  assert flags.startswith("--xla_force_host_platform_device_count=2 ")
  assert flags.split()[1:] == [OURS]
  assert flags_after(monkeypatch, flags) == flags
  yours = "--xla_disable_hlo_passes=cse"
  assert flags_after(monkeypatch, yours) == yours


@pytest.mark.parametrize("platforms", ["cuda", "tpu,cpu", "cpu,cuda"])
def test_nothing_is_set_where_there_may_be_an_accelerator(
  monkeypatch, platforms
):
  monkeypatch.setenv("JAX_PLATFORMS", platforms)
  assert flags_after(monkeypatch, "--a=1") == "--a=1"


def test_materialized_arrays_are_computed_once():
  """In the gradient of a chain of residual blocks, by the compiler's FLOP."""
  norm = blocks.GroupNorm(jnp.float32)
  variables = {"params": {"scale": jnp.ones(32), "bias": jnp.zeros(32)}}

  def chain(barrier):
    def loss(x, kernels):
      for kernel in kernels:
        x = barrier(x + norm.apply(variables, x) @ kernel)
      return jnp.square(x).mean()

    arguments = jnp.ones((2, 8, 8, 32)), jnp.full((8, 32, 32), 0.1)
    gradient = jax.grad(loss, argnums=(0, 1))
    compiled = jax.jit(gradient).lower(*arguments).compile()
    return compiled.cost_analysis()["flops"], compiled(*arguments)

  (fenced, one), (plain, other) = chain(xla.materialize), chain(lambda x: x)
  jax.tree.map(np.testing.assert_allclose, one, other)
  assert fenced < plain
