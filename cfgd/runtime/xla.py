"""What this project tells the XLA compiler: options, and what to keep."""

import importlib.metadata
import importlib.util
import os

import jax

# Measured in docs/performance.md, on two x86 cores.
_CPU = {
  # Barriers hold until code is generated, so that `settle` works.
  "--xla_disable_hlo_passes": "cse_barrier_expander",
}


def set_options():
  """Add the options to XLA_FLAGS that are not there; before JAX compiles.

  Where an accelerator may be used, nothing is set: none of these options has
  been tried on one.
  """
  if not _on_cpu():
    return
  flags = os.environ.get("XLA_FLAGS", "").split()
  there = {flag.split("=")[0] for flag in flags}
  flags += [f"{k}={v}" for k, v in _CPU.items() if k not in there]
  os.environ["XLA_FLAGS"] = " ".join(flags)


def settle(tree):
  """Have XLA compute arrays, and in a backward pass their gradients, once.

  XLA's CPU compiler copies cheap producers into each of their consumers. Along
  a chain of residual sums the copies grow with the depth, and what is known per
  channel is computed per pixel. Other compilers decide that better themselves.

  Args:
    tree: arrays.

  Returns:
    The same arrays; nothing that needs one is computed before all are there.
  """
  if jax.default_backend() != "cpu":
    return tree
  return jax.lax.optimization_barrier(tree)


def _on_cpu():
  """Say whether JAX will compile for a CPU; asking JAX would be too late."""
  chosen = os.environ.get("JAX_PLATFORMS", "")
  if chosen:
    return chosen == "cpu"
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  return not plugins and importlib.util.find_spec("libtpu") is None
