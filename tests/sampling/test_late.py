"""Late conditioning through the compiled sampler, with real networks."""

import jax
import numpy as np
import pytest

from cfgd import build
from cfgd import diffusion
from configs import imagenet64_classifier
from tests import conftest


def make_late(**sampling):
  """Return a config of two levels; a group straddles 96 and 64 channels."""
  config = conftest.make_tiny()
  config.model.update({"channel_mult": (2, 3), "condition": "decoder"})
  config.model.update({"attention_resolutions": (2,)})
  config.sampling.update({"T": 3, "w": 2.0, "batch_size": 2})
  config.sampling.update(sampling)
  return config


def perturbed(config):
  """Return parameters without the zeros of a fresh network."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: leaf + 0.05 * rng.standard_normal(leaf.shape, np.float32),
    build.initial_params(config),
  )


def separately(denoise, z, logsnr, labels):
  """Return what `diffusion.denoise_branches` does, label by label."""
  found = [denoise(z, logsnr, label) for label in labels]
  return jax.tree.map(lambda *each: jax.numpy.stack(each), *found)


@pytest.mark.parametrize(
  "sampling",
  [
    {},
    {"interval": (-3.0, 5.0), "rescale": 0.7, "w_schedule": "linear"},
    pytest.param(
      {"guidance": "cfg+classifier", "classifier_w": 1.0, "guide_dir": "given"},
      marks=pytest.mark.slow,
    ),
    pytest.param(
      {"sampler": "sde_dpmpp_2m", "grid": "logsnr", "threshold": "dynamic"},
      marks=pytest.mark.slow,
    ),
  ],
)
def test_samples_equal_those_of_separate_calls(sampling, monkeypatch):
  config = make_late(**sampling)
  params, guide = perturbed(config), None
  if "guide_dir" in sampling:
    guide = imagenet64_classifier.as_classifier(make_late(), num_res_blocks=1)
    guide.model.update({"model_channels": 32, "num_head_channels": 32})
    guide.model.condition = "all"
  both = (params, guide and perturbed(guide))
  index, label = np.arange(6), np.arange(6, dtype=np.int32)

  def images():
    drawn, finite = build.sampler(config, guide)(both, index, label)
    assert finite.all()
    return drawn.astype(int)

  together = images()
  monkeypatch.setattr(diffusion, "denoise_branches", separately)
  monkeypatch.setattr(
    "cfgd.sampling.sampler.make_sampler",
    build.sampler_lib.make_sampler.__wrapped__,
  )
  apart = images()
  # Of 256 shades; rounding may differ.
  np.testing.assert_allclose(together, apart, atol=1)
  assert (together != apart).mean() < 0.01
  config.sampling.w = 0.0
  assert (images() != apart).mean() > 0.1
