"""XLA compiler options, and barriers against recomputation."""

import importlib.metadata
import importlib.util
import os

import jax
from jax.experimental import layout

from cfgd.runtime import target

# Measured in docs/performance.md, on two x86 cores.
_CPU_OPTIONS = {
  # Keep optimization barriers until code generation: `materialize` needs them.
  "--xla_disable_hlo_passes": "cse_barrier_expander",
}


def set_options():
  """Add missing options to XLA_FLAGS; call before JAX compiles anything.

  Does nothing where an accelerator may be used: none of the options has been
  tested on one.
  """
  if not _on_cpu():
    return
  flags = os.environ.get("XLA_FLAGS", "").split()
  given = {flag.split("=")[0] for flag in flags}
  flags += [f"{k}={v}" for k, v in _CPU_OPTIONS.items() if k not in given]
  os.environ["XLA_FLAGS"] = " ".join(flags)


def materialize(tree):
  """Return the same arrays, computed once and not again in each consumer.

  XLA:CPU fuses copies of cheap producers into every consumer. Along a chain of
  residual sums the copies grow with depth, and per-channel values are computed
  anew for every pixel. The barrier stops that, in the backward pass too. Other
  compilers decide it better by themselves.
  """
  if target.platform() != "cpu":
    return tree
  return jax.lax.optimization_barrier(tree)


def tokens_minor(x):
  """Return x [B, tokens, channels], on TPUs with tokens next to each other.

  That is the layout in which TPU's compiler multiplies queries and keys of few
  channels. It does not look so far back by itself, and copies q, k and v.
  """
  if target.platform() != "tpu":
    return x
  return layout.with_layout_constraint(x, layout.Layout((0, 2, 1)))


def _on_cpu():
  """Return whether JAX will use the CPU; asking JAX would initialize it."""
  chosen = os.environ.get("JAX_PLATFORMS", "")
  if chosen:
    return chosen == "cpu"
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  return not plugins and importlib.util.find_spec("libtpu") is None
