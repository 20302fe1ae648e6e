"""Names, layouts and time of published ADM weights; PyTorch is not needed."""

import pickle
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgd import build
from cfgd import validation
from cfgd.convert import guided_diffusion
from cfgd.models import parametrization
from cfgd.runtime import errors
from configs import adm_imagenet64
from configs import adm_imagenet64_classifier
from configs import adm_imagenet128
from configs import adm_imagenet128_classifier
from tests.models import golden_weights


def shapes_of(network, size):
  zeros = jnp.zeros((1,), jnp.int32)
  z = jnp.zeros((1, size, size, 3))
  return jax.eval_shape(network.init, jax.random.key(0), z, zeros, zeros)[
    "params"
  ]


def small_network():
  """Return ADM-64's network with 32 channels, two levels and 11 classes."""
  config = adm_imagenet64.get_config()
  config.data.num_classes = 11
  config.model.update(
    {
      "model_channels": 32,
      "channel_mult": (1, 2),
      "num_res_blocks": 1,
      "attention_resolutions": (4,),
      "num_head_channels": 16,
      "dtype": "float32",
    }
  )
  return build.network(config)


def small_weights():
  """Return (shapes, params, state dict) of `small_network`."""
  shapes = shapes_of(small_network(), 8)
  params, state = golden_weights.fill(shapes)
  # Numbers that arithmetic would change or comparison would not see.
  state["out.0.bias"][:3] = params["out_0"]["bias"][:3] = -0.0, 1e-42, 3e38
  return shapes, params, state


@pytest.fixture
def weights():
  return small_weights()


def assert_same_bits(actual, desired):
  assert jax.tree.structure(actual) == jax.tree.structure(desired)
  for left, right in zip(
    jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True
  ):
    assert (left.shape, left.dtype) == (right.shape, right.dtype)
    assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


# Files; those that only PyTorch can write are in test_torch_files.


class Code:
  """Creates a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), "w")


def write_archive(path, size=3000):
  """Write a zip that looks like one of torch.save from outside."""
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", b"x" * size)


def refused(path, *parts):
  with pytest.raises(errors.UserError) as caught:
    guided_diffusion.read(path)
  message = str(caught.value)
  assert message.startswith(f"{path}: ")
  assert len(message.splitlines()) == 1, message
  for part in parts:
    assert part in message


def test_a_missing_file_is_told(tmp_path):
  refused(tmp_path / "no.pt", "No such file", "expected a state dict")


def test_a_folder_is_told(tmp_path):
  refused(tmp_path, "directory", "expected a state dict")


@pytest.mark.parametrize(
  ("content", "found"),
  [(b"", "empty file"), (b"<html>404\n</html>", "b'<html>404")],
)
def test_a_file_of_another_kind_is_told(tmp_path, content, found):
  path = tmp_path / "64x64_diffusion.pt"
  path.write_bytes(content)
  refused(path, found, "expected a state dict")


@pytest.mark.parametrize(
  ("protocol", "found"), [(0, "another kind"), (2, "pickle"), (5, "pickle")]
)
def test_a_bare_pickle_is_refused_and_not_run(tmp_path, protocol, found):
  path = tmp_path / "weights.pt"
  path.write_bytes(pickle.dumps(Code(tmp_path / "ran"), protocol))
  refused(path, found, "expected a state dict")
  assert not (tmp_path / "ran").exists()


def test_a_truncated_file_is_told(tmp_path):
  path = tmp_path / "weights.pt"
  write_archive(path)
  path.write_bytes(path.read_bytes()[:2000])
  refused(path, "truncated", "2000 bytes")


def test_missing_pytorch_is_told(tmp_path, monkeypatch):
  path = tmp_path / "weights.pt"
  write_archive(path)
  monkeypatch.setitem(sys.modules, "torch", None)
  refused(path, "pip install 'cfgd[convert]'")


# Names and layouts.


@pytest.mark.parametrize(
  ("path", "key"),
  [
    (("time_embed_0", "kernel"), "time_embed.0.weight"),
    (("label_emb", "embedding"), "label_emb.weight"),
    (("input_blocks_0_0", "kernel"), "input_blocks.0.0.weight"),
    (
      ("output_blocks_11_2", "in_layers_0", "scale"),
      "output_blocks.11.2.in_layers.0.weight",
    ),
    (
      ("input_blocks_5_0", "skip_connection", "bias"),
      "input_blocks.5.0.skip_connection.bias",
    ),
    (
      ("middle_block_1", "proj_out", "kernel"),
      "middle_block.1.proj_out.weight",
    ),
    (("out_2", "positional_embedding"), "out.2.positional_embedding"),
    (("out_2", "qkv_proj", "kernel"), "out.2.qkv_proj.weight"),
  ],
)
def test_keys_are_guided_diffusions(path, key):
  assert guided_diffusion.torch_key(path) == key


def test_a_state_dict_becomes_our_parameters(weights):
  shapes, params, state = weights
  assert {weight.ndim for weight in state.values()} == {1, 2, 3, 4}
  converted = guided_diffusion.to_flax(state, shapes, path="a.pt")
  assert_same_bits(converted, params)
  for leaf in jax.tree.leaves(converted):
    assert leaf.flags.c_contiguous
    assert leaf.flags.owndata


def test_an_attention_pool_is_converted():
  rng = np.random.default_rng(0)
  state = {
    "out.2.positional_embedding": rng.standard_normal((8, 5), np.float32),
    "out.2.qkv_proj.weight": rng.standard_normal((24, 8, 1), np.float32),
    "out.2.c_proj.weight": rng.standard_normal((3, 8, 1), np.float32),
    "out.2.c_proj.bias": rng.standard_normal(3, np.float32),
  }
  wanted = {
    "positional_embedding": (8, 5),
    "qkv_proj": {"kernel": (8, 24)},
    "c_proj": {"kernel": (8, 3), "bias": (3,)},
  }
  shapes = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
    {"out_2": wanted},
    is_leaf=lambda node: isinstance(node, tuple),
  )
  params = guided_diffusion.to_flax(state, shapes, path="a.pt")
  pool = {
    "positional_embedding": state["out.2.positional_embedding"],
    "qkv_proj": {"kernel": state["out.2.qkv_proj.weight"][:, :, 0].T},
    "c_proj": {
      "kernel": state["out.2.c_proj.weight"][:, :, 0].T,
      "bias": state["out.2.c_proj.bias"],
    },
  }
  assert_same_bits(params, {"out_2": pool})


def conversion_fails(state, shapes, *parts):
  with pytest.raises(errors.UserError) as caught:
    guided_diffusion.to_flax(state, shapes, path="a.pt")
  message = str(caught.value)
  assert message.startswith("a.pt: ")
  assert "\n" not in message
  for part in parts:
    assert part in message


def test_missing_and_unexpected_keys_are_named(weights):
  shapes, _, state = weights
  for key in ("out.0.bias", "out.2.bias"):
    del state[key]
  state |= {f"new.{i}\n": np.zeros(1, np.float32) for i in range(5)}
  conversion_fails(
    state,
    shapes,
    "2 missing ('out.0.bias', 'out.2.bias')",
    r"5 unexpected ('new.0\n', 'new.1\n', 'new.2\n', ...)",
  )


@pytest.mark.parametrize(
  ("key", "found", "wanted"),
  [
    ("out.2.weight", (3, 32, 3, 3), "(6, 32, 3, 3)"),
    ("label_emb.weight", (12, 128), "(11, 128)"),
    ("middle_block.1.qkv.weight", (192, 64, 3), "(192, 64, 1)"),
    ("middle_block.1.qkv.weight", (64, 192, 1), "(192, 64, 1)"),
    ("time_embed.0.weight", (32, 128), "(128, 32)"),
    ("out.0.bias", (), "(32,)"),
    ("out.2.weight", (6,), "(6, 32, 3, 3)"),
  ],
)
def test_a_wrong_shape_is_told(weights, key, found, wanted):
  shapes, _, state = weights
  state[key] = np.zeros(found, np.float32)
  conversion_fails(state, shapes, f"{key} has shape {found}", f"wants {wanted}")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_told(weights, value):
  shapes, _, state = weights
  state["out.0.bias"][7] = value
  conversion_fails(state, shapes, "out.0.bias has 1 of 32 numbers")


def test_the_null_row_is_zero_and_last(weights):
  _, params, _ = weights
  more = guided_diffusion.add_null_row(params)
  rows = more["label_emb"]["embedding"]
  assert rows.shape == (12, 128)
  assert rows.dtype == np.float32
  np.testing.assert_array_equal(rows[:11], params["label_emb"]["embedding"])
  np.testing.assert_array_equal(rows[11], 0)
  del more["label_emb"], params["label_emb"]
  assert_same_bits(more, params)
  with pytest.raises(errors.UserError, match="without labels"):
    guided_diffusion.add_null_row(params)


@pytest.mark.parametrize(
  ("module", "schedule", "parameters"),
  [
    (adm_imagenet64, "cosine", 295_904_454),
    (adm_imagenet128, "linear", 421_529_606),
    (adm_imagenet64_classifier, "cosine", 65_438_568),
    (adm_imagenet128_classifier, "linear", 42_568_040),
  ],
)
def test_the_configs_are_the_published_models(module, schedule, parameters):
  config = module.get_config()
  validation.validate(config, num_devices=8)
  shapes = build.param_shapes(config)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
  assert config.diffusion.timesteps == f"adm_{schedule}"
  low, high = parametrization.adm_logsnrs(schedule)[[-1, 0]]
  assert low < config.diffusion.logsnr_min < low + 0.01
  assert high - 0.01 < config.diffusion.logsnr_max < high
