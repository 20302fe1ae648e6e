"""The U-Net against guided-diffusion's, and what its parts promise."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgd import config as config_lib
from cfgd.models import blocks
from cfgd.models import unet
from configs import embedded
from configs import imagenet64
from configs import imagenet128
from tests.models import golden_weights


def make(**changes):
  arguments = {
    "model_channels": 32,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
    "num_heads": 2,
    "num_head_channels": 0,
    "new_attention_order": True,
    "num_labels": 11,
    "out_channels": 3,
    "dropout": 0.5,
    "dtype": "float32",
  }
  return unet.UNet(**arguments | changes)


def shapes_of(network, size, channels=3):
  zeros = jnp.zeros((1,), jnp.int32)
  z = jnp.zeros((1, size, size, channels))
  return jax.eval_shape(network.init, jax.random.key(0), z, zeros, zeros)[
    "params"
  ]


def count(shapes):
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
  "name", ["small", "small_neworder", "64like", "128like"]
)
def test_output_equals_guided_diffusions(golden, name):
  arrays = golden("adm_unet")
  get = lambda key: arrays[f"{name}/{key}"]  # noqa: E731
  theirs = json.loads(str(get("config_json")))
  network = make(
    model_channels=theirs["model_channels"],
    channel_mult=tuple(theirs["channel_mult"]),
    num_res_blocks=theirs["num_res_blocks"],
    attention_resolutions=tuple(
      theirs["image_size"] // factor
      for factor in theirs["attention_resolutions"]
    ),
    num_heads=theirs["num_heads"],
    num_head_channels=max(theirs["num_head_channels"], 0),
    new_attention_order=theirs["use_new_attention_order"],
    num_labels=theirs["num_classes"],
  )
  params, drawn = golden_weights.fill(shapes_of(network, theirs["image_size"]))
  assert set(drawn) == set(get("param_names"))
  for key, norm in zip(get("param_names"), get("param_l2"), strict=True):
    np.testing.assert_allclose(np.linalg.norm(drawn[key]), norm, rtol=1e-5)

  apply = jax.jit(lambda *inputs: network.apply({"params": params}, *inputs))
  for x, time, label, desired in zip(
    get("x_nchw"),
    get("timesteps"),
    get("labels"),
    get("out_nchw"),
    strict=True,
  ):
    out = apply(x.transpose(0, 2, 3, 1), time, label).transpose(0, 3, 1, 2)
    error = np.abs(out - desired).max() / np.sqrt(np.mean(desired**2))
    assert error < 1e-4


@pytest.mark.parametrize(
  ("module", "parameters"),
  [(imagenet64, 295_900_035), (imagenet128, 421_523_715)],
)
def test_the_papers_models_have_the_papers_size(module, parameters):
  config = module.get_config()
  config_lib.validate(config, num_devices=8)
  network = unet.UNet(**config_lib.unet_arguments(config))
  assert count(shapes_of(network, config.data.image_size)) == parameters


def test_a_fresh_network_predicts_zero_and_has_a_null_row():
  config = embedded.get_config()
  network = unet.UNet(**config_lib.unet_arguments(config))
  z = jnp.ones((2, 10, 10, 1))
  variables = network.init(
    jax.random.key(0), z, jnp.zeros(2), jnp.zeros(2, int)
  )
  assert variables["params"]["label_emb"]["embedding"].shape == (11, 128)
  out = network.apply(variables, z, jnp.ones(2), jnp.array([0, 10]))
  np.testing.assert_array_equal(out, 0)


@pytest.fixture(scope="module")
def trained():
  """Return a network whose parameters, last layers too, are random."""
  network = make()
  params, _ = golden_weights.fill(shapes_of(network, 8))
  apply = jax.jit(lambda *inputs: network.apply({"params": params}, *inputs))
  rng = np.random.default_rng(0)
  z = rng.standard_normal((4, 8, 8, 3), np.float32)
  return apply, z, jnp.array([0.0, 10.5, 500.0, 999.0])


def test_label_matters_and_null_is_one_more_class(trained):
  apply, z, time = trained
  outs = [apply(z, time, jnp.full(4, label)) for label in (0, 9, 10)]
  for i, j in ((0, 1), (0, 2), (1, 2)):
    assert np.abs(outs[i] - outs[j]).max() > 0.1


def test_dropout_has_its_own_key_per_example(trained):
  apply, z, time = trained
  label = jnp.zeros(4, int)
  keys = jax.vmap(jax.random.key)(np.arange(4))
  still, first = apply(z, time, label), apply(z, time, label, keys)
  assert np.abs(still - first).max() > 0.01
  np.testing.assert_array_equal(apply(z, time, label, keys), first)
  changed = apply(z, time, label, keys[jnp.array([0, 1, 3, 2])])
  np.testing.assert_allclose(changed[:2], first[:2], atol=1e-5)
  assert (np.abs(changed - first).max(axis=(1, 2, 3))[2:] > 0.01).all()


def test_bfloat16_stays_near_float32(trained):
  apply, z, time = trained
  network = make(dtype="bfloat16")
  params, _ = golden_weights.fill(shapes_of(network, 8))
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
  out = network.apply({"params": params}, z, time, jnp.zeros(4, int))
  assert out.dtype == jnp.float32
  exact = apply(z, time, jnp.zeros(4, int))
  error = np.sqrt(np.mean((out - exact) ** 2) / np.mean(exact**2))
  assert 0 < error < 2e-2


def test_group_norm_is_the_definition():
  x = np.random.default_rng(0).normal(3, 2, (2, 5, 5, 64)).astype(np.float32)
  scale, shift = np.random.default_rng(1).standard_normal((2, 2, 64))
  out, _ = blocks.GroupNorm("float32").init_with_output(
    jax.random.key(0), x, np.float32(scale), np.float32(shift)
  )
  groups = np.float64(x).reshape(2, 25, 32, 2)
  mean = groups.mean(axis=(1, 3), keepdims=True)
  variance = groups.var(axis=(1, 3), keepdims=True)
  normal = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
  desired = normal * (1 + scale[:, None, None]) + shift[:, None, None]
  np.testing.assert_allclose(out, desired, atol=5e-5)


def test_resampling_is_nearest_and_mean():
  x = np.arange(16.0).reshape(1, 4, 4, 1)
  np.testing.assert_array_equal(
    blocks.downsample(x)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]]
  )
  up = blocks.upsample(x)[0, :, :, 0]
  np.testing.assert_array_equal(up, np.kron(x[0, :, :, 0], np.ones((2, 2))))
