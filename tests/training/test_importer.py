"""From a state dict to samples and to guidance by fine-tuning."""

import jax
import numpy as np
import pytest

from cfgd import build
from cfgd.convert import guided_diffusion
from cfgd.runtime import checkpoint
from cfgd.runtime import errors
from cfgd.sampling import generate
from cfgd.training import importer
from cfgd.training import loop
from configs import imagenet64_classifier
from tests.models import golden_weights


@pytest.fixture
def adm(tiny):
  """Return a tiny model of ADM's kind: no null row, learned sigma."""
  tiny.model.null_row = False
  tiny.model.learn_sigma = True
  tiny.diffusion.p_uncond = 0.0
  tiny.diffusion.timesteps = "adm_cosine"
  tiny.diffusion.logsnr_min, tiny.diffusion.logsnr_max = -19.83, 10.09
  tiny.sampling.w = 0.0
  return tiny


@pytest.fixture
def imported(adm, tmp_path, monkeypatch):
  params, state = golden_weights.fill(build.param_shapes(adm))
  monkeypatch.setattr(guided_diffusion, "read", lambda path: state)
  importer.import_checkpoint(adm, tmp_path / "adm", "weights.pt")
  return params, tmp_path / "adm"


def test_both_weights_are_the_imported_ones(adm, imported):
  params, workdir = imported
  assert checkpoint.steps(workdir) == [0]
  for weights in ("ema", "raw"):
    read = checkpoint.read_params(workdir, 0, build.param_shapes(adm), weights)
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_imported_weights_are_not_conditioned_late(adm, tmp_path):
  adm.model.condition = "decoder"
  with pytest.raises(errors.UserError, match="published weights see the label"):
    importer.import_checkpoint(adm, tmp_path / "adm", "weights.pt")
  assert not (tmp_path / "adm").exists()


def test_imported_weights_sample_and_do_not_guide(adm, imported):
  with np.load(generate.generate(adm, imported[1])) as arrays:
    assert arrays["arr_0"].shape == (22, 4, 4, 1)
    assert len(np.unique(arrays["arr_0"])) > 10
  adm.sampling.w = 0.5
  with pytest.raises(errors.UserError, match=r"sampling\.w=0\.5"):
    generate.generate(adm, imported[1])


def test_fine_tuning_starts_with_a_null_row_of_zero(adm, imported, tmp_path):
  params, workdir = imported
  adm.model.null_row = True
  adm.diffusion.p_uncond = 0.5
  adm.train.init_from = str(workdir)
  adm.train.steps = 1
  adm.optim.learning_rate = 1e-9
  loop.train(adm, tmp_path / "tuned")
  tuned = checkpoint.read_params(
    tmp_path / "tuned", 1, build.param_shapes(adm), "raw"
  )
  table = tuned["label_emb"]["embedding"]
  assert table.shape[0] == 11
  np.testing.assert_allclose(table[10], 0, atol=1e-7)
  np.testing.assert_allclose(
    table[:10], params["label_emb"]["embedding"], atol=1e-7
  )
  adm.sampling.w = 1.0
  assert generate.generate(adm, tmp_path / "tuned").exists()


def test_a_workdir_in_use_and_other_weights_are_refused(
  adm, imported, tmp_path
):
  with pytest.raises(errors.UserError, match="has checkpoints"):
    importer.import_checkpoint(adm, imported[1], "weights.pt")
  adm.model.model_channels = 64
  with pytest.raises(errors.UserError, match=r"weights\.pt"):
    importer.import_checkpoint(adm, tmp_path / "other", "weights.pt")
  assert not (tmp_path / "other").exists()


def test_a_classifier_is_imported_like_a_model(adm, tmp_path, monkeypatch):
  config = imagenet64_classifier.as_classifier(adm, num_res_blocks=1)
  config.model.model_channels = config.model.num_head_channels = 32
  params, state = golden_weights.fill(build.param_shapes(config))
  monkeypatch.setattr(guided_diffusion, "read", lambda path: state)
  importer.import_checkpoint(config, tmp_path, "classifier.pt")
  read = checkpoint.read_params(tmp_path, 0, build.param_shapes(config), "ema")
  jax.tree.map(np.testing.assert_array_equal, read, params)
