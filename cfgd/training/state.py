"""The train state, and how Adam and the moving average update it."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


class TrainState(flax.struct.PyTreeNode):
  """All that a resumed run needs, without a device axis.

  Attributes:
    step: [] int32, steps taken, skipped ones included: the place in the data.
    skipped: [] int32, steps whose loss or gradient was not finite.
    params: network parameters, float32.
    ema_params: their exponential moving average, used for sampling.
    opt_state: optax state.
  """

  step: jax.Array
  skipped: jax.Array
  params: Any
  ema_params: Any
  opt_state: Any


def make_optimizer(
  *,
  learning_rate,
  b1,
  b2,
  eps,
  weight_decay,
  warmup_steps,
  decay_steps,
  decay,
  clip_norm=0.0,
):
  """Return AdamW with linear warm-up and a constant or decaying learning rate.

  Args:
    learning_rate: after the warm-up.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    weight_decay: decoupled, of all parameters; 0 is Adam.
    warmup_steps: steps from 0 to learning_rate.
    decay_steps: step at which the rate reaches 0; 0 keeps it constant.
    decay: "cosine" or "linear".
    clip_norm: global norm that gradients are clipped to; 0 is no clipping.

  Returns:
    An optax.GradientTransformation; without clipping its state is AdamW's.
  """
  after = {
    "cosine": optax.cosine_decay_schedule,
    "linear": lambda rate, steps: optax.linear_schedule(rate, 0.0, steps),
  }
  if decay_steps:
    rate = after[decay](learning_rate, decay_steps - warmup_steps)
  else:
    rate = optax.constant_schedule(learning_rate)
  if warmup_steps:
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    rate = optax.join_schedules([warmup, rate], [warmup_steps])
  adam = optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
  if not clip_norm:
    return adam
  return optax.chain(optax.clip_by_global_norm(clip_norm), adam)


def create(params, optimizer):
  """Start from fresh parameters; the average starts at them."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    skipped=jnp.zeros((), jnp.int32),
    params=params,
    ema_params=jax.tree.map(jnp.copy, params),
    opt_state=optimizer.init(params),
  )


def ema_decay(step, *, decay, warmup):
  """Return the decay of the moving average at a step.

  With warm-up it is min(decay, (1 + step) / (10 + step)), so that short runs
  forget the random initialization.
  """
  if not warmup:
    return decay
  return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def update(state, grads, finite, optimizer, decay):
  """Take one step, or skip it where the loss or a gradient is not finite.

  Args:
    state: TrainState.
    grads: gradient of the loss.
    finite: [] bool.
    optimizer: of `make_optimizer`.
    decay: of the moving average.

  Returns:
    TrainState with step + 1.
  """
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  ema_params = jax.tree.map(
    lambda ema, new: ema + (1.0 - decay) * (new - ema), state.ema_params, params
  )
  taken = state.replace(
    params=params, ema_params=ema_params, opt_state=opt_state
  )
  state = jax.tree.map(
    lambda new, old: jnp.where(finite, new, old), taken, state
  )
  return state.replace(
    step=state.step + 1,
    skipped=state.skipped + jnp.where(finite, 0, 1),
  )
