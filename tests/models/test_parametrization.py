"""What networks are conditioned on, and what their channels mean."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgd import diffusion
from cfgd.models import parametrization

SCHEDULE = diffusion.Schedule(-20.0, 20.0)
SCHEDULES = ["linear", "cosine"]


def exact_logsnr(schedule):
  """Return ADM's log-SNRs without products of rounded numbers."""
  if schedule == "linear":
    step = (0.02 - 1e-4) / 999
    log_terms = [math.log1p(-(1e-4 + i * step)) for i in range(1000)]
    log_alpha_bar = [math.fsum(log_terms[: t + 1]) for t in range(1000)]
  else:
    # The ratios telescope; beta is cut to 0.999 at the last timestep alone.
    angle = lambda t: (t / 1000 + 0.008) / 1.008 * math.pi / 2  # noqa: E731
    log_alpha_bar = [
      2 * (math.log(math.cos(angle(t + 1))) - math.log(math.cos(angle(0))))
      for t in range(999)
    ]
    log_alpha_bar.append(log_alpha_bar[-1] + math.log1p(-0.999))
  return np.array(
    [value - math.log(-math.expm1(value)) for value in log_alpha_bar]
  )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_timesteps_are_exact_at_integers(schedule):
  logsnr = exact_logsnr(schedule)
  assert (np.diff(logsnr) < 0).all()
  t = parametrization.adm_timestep(np.float32(logsnr), schedule)
  assert t.dtype == jnp.float32
  np.testing.assert_allclose(t, np.arange(1000), atol=1e-4, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_timesteps_are_fractional_between_integers(schedule):
  logsnr = exact_logsnr(schedule)
  middle = np.float32((logsnr[1:] + logsnr[:-1]) / 2)
  t = parametrization.adm_timestep(middle, schedule)
  np.testing.assert_allclose(t, np.arange(999) + 0.5, atol=1e-4, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_timesteps_fall_as_the_logsnr_rises(schedule):
  low, high = parametrization.adm_logsnrs(schedule)[[-1, 0]]
  logsnr = jnp.linspace(low, high, 5000).reshape(50, 100)
  t = jax.jit(parametrization.adm_timestep, static_argnums=1)(logsnr, schedule)
  assert t.shape == logsnr.shape
  assert (np.diff(np.ravel(t)) < 0).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_timesteps_are_clamped_at_the_ends(schedule):
  low, high = parametrization.adm_logsnrs(schedule)[[-1, 0]]
  exact = exact_logsnr(schedule)
  np.testing.assert_allclose([low, high], exact[[-1, 0]], rtol=1e-9)
  outside = jnp.array([-30.0, low - 1e-3, high + 1e-3, 30.0])
  t = parametrization.adm_timestep(outside, schedule)
  np.testing.assert_array_equal(t, [999.0, 999.0, 0.0, 0.0])


class Network:
  """A Flax module made of a function of its inputs."""

  condition = "all"

  def __init__(self, function):
    self.apply = lambda variables, *inputs: function(*inputs)


def model(function, timesteps):
  return parametrization.Model(Network(function), timesteps, SCHEDULE)


def test_our_networks_are_told_adms_times():
  seen = []
  network = model(lambda z, time, label: seen.append(time) or z, "uniform")
  logsnr = jnp.array([20.0, 0.0, -20.0])
  network.denoiser({})(jnp.zeros((3, 1)), logsnr, jnp.zeros(3))
  np.testing.assert_allclose(seen[0], [0, 500, 1000], atol=2e-4)


@pytest.mark.parametrize("outputs", [3, 6])
def test_a_denoiser_splits_noise_from_variance(outputs):
  z = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
  label = jnp.array([1, 2])

  def network(z, time, label):
    shift = (time + 1000.0 * label)[:, None, None, None]
    return jnp.concatenate([z + shift, 2 * z - 1], axis=-1)[..., :outputs]

  logsnr = jnp.float32(exact_logsnr("linear")[[10, 700]])
  denoise = jax.jit(model(network, "adm_linear").denoiser({}))
  prediction = denoise(z, logsnr, label)
  shift = np.array([1010.0, 2700.0])[:, None, None, None]
  np.testing.assert_allclose(prediction.eps, z + shift, atol=1e-3)
  if outputs == 3:
    assert prediction.v is None
  else:
    np.testing.assert_allclose(prediction.v, z, atol=1e-6)


def test_v_gives_adms_variance():
  # Between neighbouring timesteps the sampler's variance is that of
  # arXiv:2102.09672, eq. 15, with beta and the posterior variance of DDPM.
  t, raw = 400, np.array([-1.0, -0.3, 0.0, 1.0, 1.2])
  betas = np.linspace(1e-4, 0.02, 1000)
  alpha_bar = np.cumprod(1 - betas)
  posterior = betas[t] * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
  fraction = (raw + 1) / 2
  desired = fraction * np.log(betas[t]) + (1 - fraction) * np.log(posterior)
  logsnr = exact_logsnr("linear")

  def network(z, time, label):  # eps, and the second half for v
    return jnp.concatenate([z, jnp.float32(raw)[:, None]], axis=-1)

  denoise = model(network, "adm_linear").denoiser({})
  z = jnp.zeros((len(raw), 1))
  v = denoise(z, jnp.full(len(raw), logsnr[t]), z[:, 0]).v[:, 0]
  _, variance = diffusion.reverse(
    *(0.0, 0.0, v),
    logsnr=jnp.float32(logsnr[t]),
    logsnr_next=jnp.float32(logsnr[t - 1]),
  )
  np.testing.assert_allclose(jnp.log(variance), desired, atol=1e-4)
