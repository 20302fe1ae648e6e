"""The pmapped training step, one for every task."""

import functools

import jax
import jax.numpy as jnp

from cfgd.training import state as state_lib


def _keys(seed, step, rows):
  """Return [B] keys: an example's randomness is named (seed, step, row)."""
  key = jax.random.fold_in(jax.random.key(seed), step)
  return jax.vmap(functools.partial(jax.random.fold_in, key))(rows)


def make_train_step(loss, optimizer, *, seed, ema_decay, ema_warmup):
  """Make one step over all devices: loss, gradient, Adam, EMA.

  Args:
    loss: see `losses`.
    optimizer: optax transformation.
    seed: of all randomness; an example's is named by (seed, step, row).
    ema_decay: of the moving average.
    ema_warmup: see `state.ema_decay`.

  Returns:
    pmapped (state, batch, traced) -> (state, metrics). The batch's leaves have
    a leading axis of local devices, its "row" is each example's place in the
    global batch; the state has no device axis and is donated; `traced` is a
    dict of scalars that do not recompile. Metrics are scalars over the global
    batch: loss, grad_norm, skipped, and `measured`, a dict of (sum of values,
    sum of weights).
  """

  def step(state, batch, traced):
    keys = _keys(seed, state.step, batch["row"])

    def mean_loss(params):
      values, measured = loss(params, keys, batch, traced)
      return jnp.mean(values), jax.tree.map(jnp.sum, measured)

    (value, measured), grads = jax.value_and_grad(mean_loss, has_aux=True)(
      state.params
    )
    value, grads = jax.lax.pmean((value, grads), "batch")
    norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads)))
    decay = state_lib.ema_decay(state.step, decay=ema_decay, warmup=ema_warmup)
    state = state_lib.update(
      state, grads, jnp.isfinite(value + norm), optimizer, decay
    )
    metrics = {
      "loss": value,
      "grad_norm": norm,
      "skipped": state.skipped,
      "measured": jax.lax.psum(measured, "batch"),
    }
    return state, metrics

  return jax.pmap(
    step,
    axis_name="batch",
    in_axes=(None, 0, None),
    out_axes=(None, None),
    donate_argnums=0,
  )


def make_eval_step(loss, *, seed):
  """Make the loss and what it measures over this process's devices.

  Args:
    loss: see `losses`.
    seed: of all randomness; an example's is named by (seed, row).

  Returns:
    pmapped (params, batch, traced) -> {name: (sum of values, sum of weights)}
    with "loss" among the names. The batch is that of a training step, with
    "weight" [D, B] float32: 0 for rows that only fill it up.
  """

  def step(params, batch, traced):
    keys = _keys(seed, 0, batch["row"])
    values, measured = loss(params, keys, batch, traced)
    measured = measured | {"loss": (values, jnp.ones_like(values))}
    weighted = jax.tree.map(lambda v: jnp.sum(v * batch["weight"]), measured)
    return jax.lax.psum(weighted, "batch")

  return jax.pmap(
    step,
    axis_name="batch",
    in_axes=(None, 0, None),
    out_axes=None,
    devices=jax.local_devices(),
  )
