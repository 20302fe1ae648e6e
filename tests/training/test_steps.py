"""The pmapped step on four devices, the average, and skipped steps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cfgd import diffusion
from cfgd.models import parametrization
from cfgd.runtime import distributed
from cfgd.training import losses
from cfgd.training import state as state_lib
from cfgd.training import steps
from tests.models import golden_weights
from tests.models import networks


def make_optimizer(**changes):
  arguments = {
    "learning_rate": 0.1,
    "b1": 0.9,
    "b2": 0.99,
    "eps": 1e-8,
    "weight_decay": 0.0,
    "warmup_steps": 0,
    "decay_steps": 0,
    "decay": "cosine",
  }
  return state_lib.make_optimizer(**arguments | changes)


def quadratic(params, keys, batch, traced):
  """Pull w to each example's value, with noise from its key."""
  noise = diffusion.normal(keys, ())
  error = params["w"] - batch["image"] + 0.1 * noise
  return error**2 * traced["scale"], {"error": (error, jnp.ones_like(error))}


def make_batch(number=8):
  return {
    "image": np.linspace(-1, 2, number, dtype=np.float32),
    "row": np.arange(number, dtype=np.int32),
  }


def run(num_steps, batch, scale=1.0, split=4, microbatches=1):
  optimizer = make_optimizer()
  step = steps.make_train_step(
    *(quadratic, optimizer),
    **{"seed": 0, "ema_decay": 0.9, "ema_warmup": False},
    microbatches=microbatches,
  )
  params = {"w": jnp.float32(3)}
  state = distributed.replicate(state_lib.create(params, optimizer))
  history = []
  for _ in range(num_steps):
    state, metrics = step(
      state, distributed.split(batch, split), {"scale": np.float32(scale)}
    )
    history.append(jax.device_get(metrics))
  return jax.device_get(state), history


def test_four_devices_take_the_step_of_one_batch():
  """Against the same update written out, on the whole batch at once."""
  assert jax.local_device_count() == 4
  state, history = run(3, make_batch())
  optimizer = make_optimizer()
  params, ema = {"w": jnp.float32(3)}, 3.0
  opt_state = optimizer.init(params)
  batch = make_batch()
  for i in range(3):
    key = jax.random.fold_in(jax.random.key(0), i)
    keys = jnp.stack([jax.random.fold_in(key, row) for row in range(8)])
    loss, grads = jax.value_and_grad(
      lambda params, keys=keys: quadratic(params, keys, batch, {"scale": 1.0})[
        0
      ].mean()
    )(params)
    np.testing.assert_allclose(history[i]["loss"], loss, rtol=1e-6)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    ema = 0.9 * ema + 0.1 * params["w"]
  np.testing.assert_allclose(state.params["w"], params["w"], rtol=1e-6)
  np.testing.assert_allclose(state.ema_params["w"], ema, rtol=1e-6)
  assert (state.step, state.skipped) == (3, 0)


def test_state_has_no_device_axis_and_is_donated():
  optimizer = make_optimizer()
  step = steps.make_train_step(
    lambda params, keys, batch, traced: (
      quadratic(params, keys, batch, traced)[0].mean(axis=0),
      {},
    ),
    optimizer,
    seed=0,
    ema_decay=0.9,
    ema_warmup=False,
  )
  params = {"w": jnp.ones((5, 1))}
  state = distributed.replicate(state_lib.create(params, optimizer))
  new, _ = step(
    state, distributed.split(make_batch(), 4), {"scale": np.float32(1)}
  )
  assert new.params["w"].shape == (5, 1)
  assert state.params["w"].is_deleted()
  assert new.params["w"].is_fully_replicated


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_step_that_is_not_finite_is_skipped_and_counted(poison):
  batch = make_batch()
  batch["image"][5] = poison  # on one device only
  state, history = run(2, batch)
  assert (state.step, state.skipped) == (2, 2)
  assert history[-1]["skipped"] == 2
  assert not history[-1]["finite"]
  assert not np.isfinite(history[0]["loss"])
  assert state.params["w"] == state.ema_params["w"] == 3
  for leaf in jax.tree.leaves(state):
    assert np.isfinite(leaf).all()


def test_traced_settings_do_not_recompile():
  calls = []

  def loss(params, keys, batch, traced):
    calls.append(1)
    return quadratic(params, keys, batch, traced)

  optimizer = make_optimizer()
  step = steps.make_train_step(
    loss, optimizer, seed=0, ema_decay=0.9, ema_warmup=False
  )
  for scale in (1.0, 0.5, 0.0):
    state = distributed.replicate(
      state_lib.create({"w": jnp.float32(1)}, optimizer)
    )
    step(
      state,
      distributed.split(make_batch(), 4),
      {"scale": np.float32(scale)},
    )
    if scale == 1.0:
      first = len(calls)
  assert len(calls) == first


def test_ema_decay_warms_up():
  decay = lambda i: state_lib.ema_decay(i, decay=0.995, warmup=True)  # noqa: E731
  np.testing.assert_allclose(decay(0), 0.1)
  np.testing.assert_allclose(decay(90), 0.91)
  np.testing.assert_allclose(decay(100_000), 0.995)
  assert state_lib.ema_decay(0, decay=0.9, warmup=False) == 0.9


def test_what_is_measured_is_summed_over_devices():
  _, history = run(1, make_batch())
  total, weight = history[0]["measured"]["error"]
  key = jax.random.fold_in(jax.random.key(0), 0)
  keys = jnp.stack([jax.random.fold_in(key, row) for row in range(8)])
  desired = 3 - make_batch()["image"] + 0.1 * diffusion.normal(keys, ())
  np.testing.assert_allclose(total, desired.sum(), rtol=1e-6)
  assert weight == 8


def test_evaluation_leaves_out_what_fills_up_a_batch():
  step = steps.make_eval_step(quadratic, seed=0)
  batch = make_batch(6)
  filled = {key: distributed.pad(value, 8) for key, value in batch.items()}
  filled["weight"] = np.float32([1] * 6 + [0] * 2)
  measured = step(
    {"w": jnp.float32(3)}, distributed.split(filled, 4), {"scale": 1.0}
  )
  key = jax.random.fold_in(jax.random.key(0), 0)
  keys = jnp.stack([jax.random.fold_in(key, row) for row in range(6)])
  error = 3 - batch["image"] + 0.1 * diffusion.normal(keys, ())
  np.testing.assert_allclose(measured["error"][0], error.sum(), rtol=1e-6)
  np.testing.assert_allclose(measured["loss"][0], (error**2).sum(), rtol=1e-6)
  assert measured["loss"][1] == measured["error"][1] == 6


def test_a_gradient_is_clipped_by_its_norm_before_adam_and_logged_as_it_was():
  """By Adam's first moment, (1 - b1) times the gradient that it saw."""

  def loss(params, keys, batch, traced):
    del keys, traced
    return batch["image"] * (3 * params["a"].sum() + 4 * params["b"]), {}

  batch = make_batch() | {"image": np.full(8, 2.0, np.float32)}
  # a has four entries of 6, b one of 8.
  norm = np.sqrt(4 * 6**2 + 8**2)
  for clip_norm, factor in ((0.0, 1.0), (1.0, 1 / norm), (20.0, 1.0)):
    optimizer = make_optimizer(clip_norm=clip_norm)
    step = steps.make_train_step(
      loss, optimizer, seed=0, ema_decay=0.9, ema_warmup=False
    )
    params = {"a": jnp.ones(4), "b": jnp.ones(())}
    state = distributed.replicate(state_lib.create(params, optimizer))
    state, metrics = step(state, distributed.split(batch, 4), {})
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-6)
    (moments,) = optax.tree.get_all_with_path(state.opt_state, "mu")
    np.testing.assert_allclose(moments[1]["a"], 0.1 * 6 * factor, rtol=1e-5)
    np.testing.assert_allclose(moments[1]["b"], 0.1 * 8 * factor, rtol=1e-5)


def test_without_clipping_the_optimizer_has_adams_state():
  """So that checkpoints from before there was any can be read."""
  params = {"w": jnp.ones(3)}
  ours = make_optimizer(clip_norm=0.0).init(params)
  adams = optax.adamw(optax.constant_schedule(0.1)).init(params)
  assert jax.tree.structure(ours) == jax.tree.structure(adams)


def test_microbatches_add_up_to_the_whole_batch_in_less_memory():
  """Loss and gradient of a real network, with label and other dropout."""
  network = networks.make_unet(channel_mult=(1,), attention_resolutions=(8,))
  schedule = diffusion.Schedule(-20.0, 20.0)
  model = parametrization.Model(network, "uniform", schedule)
  loss = losses.diffusion_loss(model, null_label=10)
  params, _ = golden_weights.fill(networks.shapes_of(network, 8))
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.integers(0, 256, (16, 8, 8, 3), dtype=np.uint8),
    "label": rng.integers(0, 10, 16).astype(np.int32),
  }
  keys = diffusion.image_keys(0, jnp.arange(16))
  results, memory = [], []
  for microbatches in (1, 4):

    def compute(params, microbatches=microbatches):
      return steps._mean_and_gradient(
        *(loss, params, keys, batch, {"p_uncond": 0.5}),
        microbatches,
      )

    compiled = networks.jit(compute).lower(params).compile()
    memory.append(compiled.memory_analysis().temp_size_in_bytes)
    results.append(compiled(params))
  ((whole, _), gradient), ((parts, _), other) = results
  np.testing.assert_allclose(parts, whole, rtol=1e-5)
  difference = jax.tree.map(np.subtract, gradient, other)
  assert optax.tree.norm(difference) < 1e-5 * optax.tree.norm(gradient)
  assert optax.tree.norm(gradient) > 1e-3
  assert memory[1] < 0.5 * memory[0]


def test_microbatches_take_the_step_of_the_whole_batch():
  """On four devices, each of whose rows are cut into four parts."""
  batch = make_batch(64)
  state, history = run(3, batch)
  other, parts = run(3, batch, microbatches=4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
    *((state, history), (other, parts)),
  )


def test_one_microbatch_that_is_not_finite_spoils_the_step():
  optimizer = make_optimizer()
  step = steps.make_train_step(
    *(quadratic, optimizer),
    **{"seed": 0, "ema_decay": 0.9, "ema_warmup": False},
    microbatches=2,
  )
  batch = make_batch(16)
  batch["image"][5] = np.nan
  state = state_lib.create({"w": jnp.float32(3)}, optimizer)
  state, metrics = step(
    *(distributed.replicate(state), distributed.split(batch, 4)),
    {"scale": np.float32(1)},
  )
  assert not metrics["finite"]
  assert (state.params["w"], state.skipped) == (3, 1)


def rates(optimizer, number):
  """Return the sizes of Adam's first steps under a constant gradient."""
  params = jnp.float32(0)
  opt_state = optimizer.init(params)
  sizes = []
  for _ in range(number):
    update, opt_state = optimizer.update(jnp.float32(1), opt_state, params)
    sizes.append(-float(update))
  return sizes


def test_learning_rate_schedules():
  np.testing.assert_allclose(rates(make_optimizer(), 3), 0.1, rtol=1e-4)
  warm = rates(make_optimizer(warmup_steps=4), 6)
  np.testing.assert_allclose(warm, [0, 0.025, 0.05, 0.075, 0.1, 0.1], atol=1e-5)
  cosine = rates(make_optimizer(warmup_steps=2, decay_steps=10), 11)
  np.testing.assert_allclose(cosine[2], 0.1, rtol=1e-4)
  np.testing.assert_allclose(cosine[6], 0.05, rtol=1e-3)
  np.testing.assert_allclose(cosine[10], 0.0, atol=1e-6)
  line = make_optimizer(warmup_steps=2, decay_steps=10, decay="linear")
  np.testing.assert_allclose(
    rates(line, 11), [0, 0.05, *np.linspace(0.1, 0, 9)], atol=1e-5
  )


def test_weight_decay_shrinks_parameters_apart_from_the_gradient():
  optimizer = make_optimizer(weight_decay=0.05)
  params = jnp.float32(2.0)
  update, _ = optimizer.update(jnp.float32(0), optimizer.init(params), params)
  np.testing.assert_allclose(update, -0.1 * 0.05 * 2.0, rtol=1e-6)


def test_every_example_has_its_own_key():
  seen = []

  def loss(params, keys, batch, traced):
    jax.debug.callback(
      lambda data: seen.append(np.array(data)), jax.random.key_data(keys)
    )
    return quadratic(params, keys, batch, traced)

  optimizer = make_optimizer()
  step = steps.make_train_step(
    loss, optimizer, seed=0, ema_decay=0.9, ema_warmup=False
  )
  state = distributed.replicate(
    state_lib.create({"w": jnp.float32(1)}, optimizer)
  )
  for _ in range(2):
    state, _ = step(
      state, distributed.split(make_batch(), 4), {"scale": np.float32(1)}
    )
  jax.effects_barrier()
  keys = {tuple(key) for key in np.concatenate(seen).reshape(-1, 2)}
  assert len(keys) == 16, list(itertools.islice(keys, 3))
