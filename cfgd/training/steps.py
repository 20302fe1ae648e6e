"""The pmapped training step, one for every task."""

import functools

import jax
import jax.numpy as jnp

from cfgd import diffusion
from cfgd import parametrization
from cfgd.training import state as state_lib


def diffusion_loss(network, *, null_label, timesteps, logsnr_min, logsnr_max):
  """Make the loss of Algorithm 1 for a Flax network.

  Args:
    network: Flax module, (z, time, label, dropout_keys) -> eps.
    null_label: label of the unconditional model.
    timesteps: see `parametrization.denoiser`.
    logsnr_min: lower end of the schedule.
    logsnr_max: upper end of the schedule.

  Returns:
    (params, keys [B], batch, {"p_uncond"}) -> loss [B], with batch {"image":
    [B, H, W, C] uint8, "label": [B]}.
  """
  schedule = {"logsnr_min": logsnr_min, "logsnr_max": logsnr_max}

  def loss(params, keys, batch, traced):
    def apply(z, time, label):
      dropout_keys = diffusion.fold_in(keys, 1)
      return network.apply({"params": params}, z, time, label, dropout_keys)

    return diffusion.loss(
      parametrization.denoiser(apply, timesteps=timesteps, **schedule),
      diffusion.fold_in(keys, 0),
      batch["image"].astype(jnp.float32) / 127.5 - 1.0,
      batch["label"],
      p_uncond=traced["p_uncond"],
      null_label=null_label,
      **schedule,
    )

  return loss


def make_train_step(loss, optimizer, *, seed, ema_decay, ema_warmup):
  """Make one step over all devices: loss, gradient, Adam, EMA.

  Args:
    loss: (params, keys [B], batch, traced) -> [B].
    optimizer: optax transformation.
    seed: of all randomness; an example's is named by (seed, step, row).
    ema_decay: of the moving average.
    ema_warmup: see `state.ema_decay`.

  Returns:
    pmapped (state, batch, traced) -> (state, metrics). The batch's leaves have
    a leading axis of local devices, its "row" is each example's place in the
    global batch; the state has no device axis and is donated; `traced` is a
    dict of scalars that do not recompile; metrics are scalars: loss and
    grad_norm over the global batch, skipped.
  """

  def step(state, batch, traced):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(batch["row"])

    def mean_loss(params):
      return jnp.mean(loss(params, keys, batch, traced))

    value, grads = jax.value_and_grad(mean_loss)(state.params)
    value, grads = jax.lax.pmean((value, grads), "batch")
    norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads)))
    decay = state_lib.ema_decay(state.step, decay=ema_decay, warmup=ema_warmup)
    state = state_lib.update(
      state, grads, jnp.isfinite(value + norm), optimizer, decay
    )
    metrics = {"loss": value, "grad_norm": norm, "skipped": state.skipped}
    return state, metrics

  return jax.pmap(
    step,
    axis_name="batch",
    in_axes=(None, 0, None),
    out_axes=(None, None),
    donate_argnums=0,
  )


def conditioning_fault(loss, params, batch):
  """Look for a network that ignores the label, or sees it where it is dropped.

  The parameters are perturbed first: a fresh network's last layer is zero and
  hides everything.

  Args:
    loss: of `diffusion_loss`.
    params: network parameters.
    batch: {"image" [B, ...], "label" [B]} of at least one example.

  Returns:
    None, or what is wrong.
  """

  @jax.jit
  def losses(params, label, p_uncond):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    leaves = [
      leaf + 0.05 * jax.random.normal(key, leaf.shape)
      for key, leaf in zip(keys, leaves, strict=True)
    ]
    keys = diffusion.image_keys(0, jnp.arange(label.shape[0]))
    traced = {"p_uncond": p_uncond}
    return loss(tree.unflatten(leaves), keys, batch | {"label": label}, traced)

  label = batch["label"]
  other = jnp.where(label == 0, 1, 0).astype(label.dtype)
  dropped = losses(params, label, 1.0) == losses(params, other, 1.0)
  if not dropped.all():
    return "the network sees labels that were dropped (p_uncond=1)"
  kept = losses(params, label, 0.0) == losses(params, other, 0.0)
  if kept.any():
    return "the network's output does not depend on the label (p_uncond=0)"
  return None
