"""Losses against closed forms, and the probe of the conditioning."""

import jax
import jax.numpy as jnp
import numpy as np

from cfgd import diffusion
from cfgd.models import parametrization
from cfgd.training import losses

_SCHEDULE = diffusion.Schedule(-20.0, 20.0)


def model(network):
  return parametrization.Model(network, "uniform", _SCHEDULE)


def make_batch(number):
  rng = np.random.default_rng(0)
  return {
    "image": rng.integers(0, 256, (number, 2, 2, 1)).astype(np.uint8),
    "label": rng.integers(0, 10, number).astype(np.int32),
  }


def labelled(network):
  """Return the diffusion loss of (z, time, label) -> eps as if it were Flax."""

  class Module:
    condition = "all"

    def apply(self, variables, z, time, label, dropout_keys):
      return variables["params"]["w"] * network(z, label)

  return losses.diffusion_loss(model(Module()), null_label=10)


def test_the_probe_finds_networks_that_cannot_guide():
  batch = make_batch(3)
  params = {"w": jnp.ones(())}
  by_label = lambda z, label: z * label[:, None, None, None]  # noqa: E731
  probe = lambda loss: losses.conditioning_fault(loss, params, batch)  # noqa: E731
  assert probe(labelled(by_label)) is None
  assert "does not depend" in probe(labelled(lambda z, label: z))

  def leaking(params, keys, batch, traced):
    values, _ = labelled(by_label)(params, keys, batch, traced)
    return values + batch["label"], {}

  assert "were dropped" in probe(leaking)


class _Seer:
  """A classifier that says what it is shown, as its logits."""

  def __init__(self, answer):
    self.answer = answer  # (z, time) -> logits
    self.seen = []

  def apply(self, variables, z, time, dropout_keys):
    self.seen.append((z, time, dropout_keys))
    return variables["params"] * self.answer(z, time)


def test_the_classifier_is_trained_at_the_schedules_noise_levels():
  """z is alpha x + sigma eps at the time that is said, for uniform times."""
  seer = _Seer(lambda z, time: jnp.zeros((len(time), 10)))
  loss = losses.classifier_loss(model(seer))
  number = 4096
  batch = make_batch(number)
  keys = diffusion.image_keys(0, jnp.arange(number))
  values, measured = loss(1.0, keys, batch, {})
  np.testing.assert_allclose(values, np.log(10), rtol=1e-6)
  z, time, dropout_keys = seer.seen[0]
  assert dropout_keys.shape == (number,)
  u = np.float64(time) / 1000
  np.testing.assert_allclose(np.sort(u), np.linspace(0, 1, number), atol=0.03)
  logsnr = _SCHEDULE.logsnr(jnp.float32(u))
  alpha, sigma = (
    np.sqrt(1 / (1 + np.exp(sign * np.float64(logsnr))))[:, None, None, None]
    for sign in (-1, 1)
  )
  eps = (z - alpha * (batch["image"] / 127.5 - 1)) / sigma
  noisy = u > 0.25  # eps is lost in the rounding of z where sigma is small
  np.testing.assert_allclose(eps[noisy].mean(), 0, atol=0.03)
  np.testing.assert_allclose(eps[noisy].std(), 1, atol=0.03)
  assert set(measured) == {
    "accuracy",
    "accuracy_u0-0.25",
    "accuracy_u0.25-0.5",
    "accuracy_u0.5-0.75",
    "accuracy_u0.75-1",
  }


def test_accuracy_is_told_by_noise_level():
  """A classifier that is right up to u = 1/2 and wrong beyond."""
  number = 64
  batch = make_batch(number)
  right = jax.nn.one_hot(batch["label"], 10)
  wrong = jax.nn.one_hot((batch["label"] + 1) % 10, 10)
  seer = _Seer(lambda z, time: jnp.where(time[:, None] < 500, right, wrong))
  loss = losses.classifier_loss(model(seer))
  keys = diffusion.image_keys(1, jnp.arange(number))
  values, measured = loss(8.0, keys, batch, {})
  clean = np.asarray(seer.seen[0][1]) < 500
  log_sum = np.log(np.exp(8) + 9)
  np.testing.assert_allclose(
    values, np.where(clean, log_sum - 8, log_sum), rtol=1e-4
  )
  sums = jax.tree.map(jnp.sum, measured)
  assert sums["accuracy"] == (clean.sum(), number)
  for band, desired in (("0-0.25", 1), ("0.25-0.5", 1), ("0.5-0.75", 0)):
    total, weight = sums[f"accuracy_u{band}"]
    assert weight > 0
    assert total == desired * weight
  assert sum(sums[name][1] for name in sums if "_u" in name) == number
