"""The compiled sampler of real networks: what it holds, and whose variance."""

import jax
import numpy as np
import pytest

from cfgd import build
from cfgd import diffusion
from tests.models import golden_weights

INDEX = np.arange(8, dtype=np.uint32)
LABEL = INDEX.astype(np.int32)


@pytest.mark.parametrize(
  ("guidance", "two_passes", "copies"),
  [("none", True, 1), ("cfg", True, 2), ("cfg", False, 2)],
)
def test_copies_of_the_network_in_a_program(tiny, guidance, two_passes, copies):
  tiny.sampling.guidance = guidance
  draw = build.sampler(tiny, two_passes=two_passes)
  params = build.param_shapes(tiny)
  program = draw.run.lower(*draw.arguments((params, None), INDEX, LABEL))
  z, time = np.zeros((2, 4, 4, 1), np.float32), np.zeros(2, np.float32)
  alone = jax.jit(build.network(tiny).apply).lower(
    {"params": params}, z, time, LABEL[:2]
  )
  once, found = (
    lowered.as_text().count("stablehlo.convolution")
    for lowered in (alone, program)
  )
  assert once > 5
  assert found == copies * once


def images_of(config, params, **fields):
  config = config.copy_and_resolve_references()
  config.sampling.update(fields)
  images, finite = build.sampler(config)((params, None), INDEX, LABEL)
  assert finite.all()
  return images


@pytest.mark.parametrize(
  "name", [k for k, row in diffusion.SAMPLERS.items() if not row.without_score]
)
def test_an_image_of_a_network_depends_on_its_index_alone(tiny, name):
  """Whatever the sampler, in another place of another call."""
  tiny.sampling.update({"sampler": name, "T": 6, "w": 1.0, "churn": 3.0})
  tiny.sampling.grid = "logsnr"
  params, _ = golden_weights.fill(build.param_shapes(tiny))
  draw = build.sampler(tiny)
  whole, finite = draw((params, None), INDEX, LABEL)
  assert finite.all()
  assert (whole[0] != whole[1]).any()
  rows = np.array([6, 1])
  some, _ = draw((params, None), INDEX[rows], LABEL[rows])
  apart = np.abs(np.int32(some) - np.int32(whole[rows]))
  assert apart.max() <= 1  # of 255


def test_the_variance_is_the_networks_own_or_the_configs(tiny):
  tiny.model.learn_sigma = True
  tiny.diffusion.timesteps = "adm_cosine"
  tiny.sampling.T = 5
  params, _ = golden_weights.fill(build.param_shapes(tiny))
  own = images_of(tiny, params, v_from="own", v=0.3)
  constant = images_of(tiny, params, v_from="config", v=0.3)
  assert (own != constant).any()
  # Only "config" reads sampling.v.
  np.testing.assert_array_equal(own, images_of(tiny, params, v=0.9))
  assert (images_of(tiny, params, v_from="config", v=0.9) != constant).any()

  # The same network without the channels of v.
  halved = {k: v[..., :1] for k, v in params["out_2"].items()}
  tiny.model.learn_sigma = False
  without = images_of(tiny, params | {"out_2": halved}, v_from="own", v=0.3)
  np.testing.assert_array_equal(without, constant)
