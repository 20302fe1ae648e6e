"""The pmapped training step, one for every task."""

import functools

import jax
import jax.numpy as jnp

from cfgd.training import state as state_lib


def _keys(seed, step, rows):
  """Return [B] keys: an example's randomness is named (seed, step, row)."""
  key = jax.random.fold_in(jax.random.key(seed), step)
  return jax.vmap(functools.partial(jax.random.fold_in, key))(rows)


def _mean_and_gradient(loss, params, keys, batch, traced, microbatches):
  """Return ((mean loss, summed `measured`), gradient) of one device's rows.

  Accumulated over equal microbatches, in the memory of one.
  """

  def mean_loss(params, keys, batch):
    values, measured = loss(params, keys, batch, traced)
    return jnp.mean(values), jax.tree.map(jnp.sum, measured)

  gradient = jax.value_and_grad(mean_loss, has_aux=True)
  if microbatches == 1:
    return gradient(params, keys, batch)

  parts = jax.tree.map(
    lambda rows: rows.reshape((microbatches, -1, *rows.shape[1:])),
    (keys, batch),
  )
  first = jax.tree.map(lambda rows: rows[0], parts)
  zeros = jax.tree.map(
    lambda shape: jnp.zeros(shape.shape, shape.dtype),
    jax.eval_shape(gradient, params, *first),
  )

  def add(total, part):
    return jax.tree.map(jnp.add, total, gradient(params, *part)), None

  ((value, measured), grads), _ = jax.lax.scan(add, zeros, parts)
  value, grads = jax.tree.map(lambda x: x / microbatches, (value, grads))
  return (value, measured), grads


def make_train_step(
  loss,
  optimizer,
  *,
  seed,
  ema_decay,
  ema_warmup,
  microbatches=1,
  devices=None,
):
  """Return the training step over all devices: loss, gradient, Adam, EMA.

  Args:
    loss: see `losses`.
    optimizer: optax transformation.
    seed: of all randomness; an example's is named by (seed, step, row).
    ema_decay: of the moving average.
    ema_warmup: see `state.ema_decay`.
    microbatches: gradient accumulation over equal parts of each device's rows;
      the step is the same.
    devices: of all processes; None is all that there are here.

  Returns:
    pmapped (state, batch, traced) -> (state, metrics). Leaves of the batch have
    a leading axis of local devices, and its "row" is each example's place in
    the global batch. The state has no device axis and is donated. `traced` is a
    dict of scalars that do not recompile. Metrics are scalars over the global
    batch: loss, grad_norm (before clipping), finite (whether the step was
    taken), skipped (total), and `measured`, a dict of (sum of values, sum of
    weights).
  """

  def step(state, batch, traced):
    keys = _keys(seed, state.step, batch["row"])
    (value, measured), grads = _mean_and_gradient(
      loss, state.params, keys, batch, traced, microbatches
    )
    value, grads = jax.lax.pmean((value, grads), "batch")
    norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads)))
    finite = jnp.isfinite(value + norm)
    decay = state_lib.ema_decay(state.step, decay=ema_decay, warmup=ema_warmup)
    state = state_lib.update(state, grads, finite, optimizer, decay)
    metrics = {
      "loss": value,
      "grad_norm": norm,
      "finite": finite,
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
    devices=devices,
  )


def make_eval_step(loss, *, seed):
  """Return the evaluation of a loss over this process's devices.

  Args:
    loss: see `losses`.
    seed: of all randomness; an example's is named by (seed, row).

  Returns:
    pmapped (params, batch, traced) -> {name: (sum of values, sum of weights)}
    with "loss" among the names. The batch is that of a training step, with
    "weight" [D, B] float32, 0 for padding rows.
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


def weighted_means(measured, prefix=""):
  """Turn {name: (sum of values, sum of weights)} into {name: mean}.

  Names without weight, such as a noise level without examples, are left out.
  """
  return {
    prefix + name: float(value / weight)
    for name, (value, weight) in measured.items()
    if weight > 0
  }
