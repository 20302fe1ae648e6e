"""Previews during training: of the model alone, whatever the config samples."""

import jax
import numpy as np
import pytest

from cfgd import build
from cfgd import validation
from cfgd.training import tasks
from tests.models import golden_weights

# Settings that go with some guidance, and that a preview cannot keep.
_SETTINGS = {
  "none": {"guidance": "none", "w": 0.0},
  "classifier": {
    **{"guidance": "classifier", "w": 2.0, "guide_dir": "elsewhere"},
    **{"sampler": "ancestral_mean_shift", "interval": (-5.0, 5.0)},
  },
  "both": {
    **{"guidance": "cfg+classifier", "w": 0.0, "classifier_w": 1.0},
    **{"guide_dir": "elsewhere"},
  },
  "marginal": {"guidance": "marginal", "w": 1.0, "guide_dir": "elsewhere"},
  "auto": {
    **{"guidance": "auto", "w": 1.0, "guide_step": 100},
    **{"rescale": 0.5, "w_schedule": "linear"},
  },
}


def set_up(config, p_uncond, null_row, settings):
  config.model.null_row = null_row
  config.diffusion.p_uncond = p_uncond
  config.sampling.update(_SETTINGS[settings])
  validation.validate(config, num_devices=1)
  return tasks._preview(config)


@pytest.mark.parametrize("settings", _SETTINGS)
@pytest.mark.parametrize("null_row", [False, True])
def test_without_a_null_label_the_preview_is_conditional(
  tiny, settings, null_row
):
  preview = set_up(tiny, 0.0, null_row, settings)
  assert (preview.sampling.guidance, preview.sampling.w) == ("none", 0.0)
  validation.validate(preview, num_devices=1)


def test_without_labels_the_preview_is_unconditional(tiny):
  tiny.sampling.update({"guidance": "cfg", "w": -1.0, "w_schedule": "cosine"})
  tiny.sampling.update({"interval": (-3.0, 3.0), "rescale": 0.7})
  tiny.diffusion.p_uncond = 1.0
  preview = tasks._preview(tiny)
  assert (preview.sampling.guidance, preview.sampling.w) == ("cfg", -1.0)
  # w is -1 at all noise levels, and nothing of the conditional eps is left.
  assert preview.sampling.w_schedule == "constant"
  assert preview.sampling.interval == ()
  assert preview.sampling.rescale == 0
  validation.validate(preview, num_devices=1)


@pytest.mark.parametrize("settings", _SETTINGS)
def test_otherwise_the_preview_needs_the_model_alone(tiny, settings):
  preview = set_up(tiny, 0.2, True, settings)
  alone = "none" if settings == "none" else "cfg"
  assert preview.sampling.guidance == alone
  assert preview.sampling.w == _SETTINGS[settings]["w"]
  validation.validate(preview, num_devices=1)


@pytest.mark.parametrize(
  ("p_uncond", "w", "untrained"),
  [(0.0, 0.0, np.arange(10, 11)), (1.0, -1.0, np.arange(10))],
)
def test_a_preview_does_not_show_labels_that_are_not_trained(
  tiny, p_uncond, w, untrained
):
  tiny.diffusion.p_uncond, tiny.sampling.w = p_uncond, w
  params, _ = golden_weights.fill(build.param_shapes(tiny))
  draw = build.sampler(tasks._preview(tiny))
  other = jax.tree.map(np.copy, params)
  other["label_emb"]["embedding"][untrained] *= -3.0
  index = np.arange(8)
  label = (index % 10).astype(np.int32)
  images, _ = draw((params, None), index, label)
  same, _ = draw((other, None), index, label)
  np.testing.assert_array_equal(images, same)
  other["label_emb"]["embedding"] *= -3.0
  changed, _ = draw((other, None), index, label)
  assert (images != changed).any()
