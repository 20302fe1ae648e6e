"""What the U-Net and the classifier promise, besides parity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgd import build
from cfgd import diffusion
from cfgd import validation
from cfgd.models import parametrization
from cfgd.models import unet
from configs import embedded
from configs import imagenet64
from configs import imagenet128
from tests.models import golden_weights
from tests.models import networks

SCHEDULE = diffusion.Schedule(-20.0, 20.0)


@pytest.mark.parametrize(
  ("module", "parameters"),
  [(imagenet64, 295_900_035), (imagenet128, 421_523_715)],
)
def test_the_papers_models_have_the_papers_size(module, parameters):
  config = module.get_config()
  validation.validate(config, num_devices=8)
  network = build.network(config)
  shapes = networks.shapes_of(network, config.data.image_size)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


def test_a_fresh_network_predicts_zero_and_has_a_null_row():
  config = embedded.get_config()
  config.model.channel_mult, config.model.attention_resolutions = (1,), ()
  network = build.network(config)

  @networks.jit
  def start(key):
    z = jnp.ones((2, 4, 4, 1))
    variables = network.init(key, z, jnp.zeros(2), jnp.zeros(2, int))
    return variables, network.apply(variables, z, jnp.ones(2), jnp.arange(2))

  variables, out = start(jax.random.key(0))
  assert variables["params"]["label_emb"]["embedding"].shape == (11, 128)
  np.testing.assert_array_equal(out, 0)


@pytest.fixture(scope="module")
def trained():
  """Return a network whose parameters, last layers too, are random."""
  network = networks.make_unet()
  params, _ = golden_weights.fill(networks.shapes_of(network, 8))
  apply = functools.partial(networks.jit(network.apply), {"params": params})
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


def _loss_and_gradients(network, params, z, rest):
  keys = jax.vmap(jax.random.key)(np.arange(len(z)))

  @networks.jit
  def run(params, z):
    apply = lambda p, z: network.apply({"params": p}, z, *rest, keys)  # noqa: E731
    loss = lambda p, z: (apply(p, z) ** 2).sum()  # noqa: E731
    return jax.value_and_grad(loss, argnums=(0, 1))(params, z)

  return run(params, z)


@pytest.mark.slow
@pytest.mark.parametrize("make", [networks.make_unet, networks.make_classifier])
def test_rematerialisation_changes_nothing_but_memory(make):
  plain = make(channel_mult=(1,), attention_resolutions=(8,))
  remat = plain.copy(remat=True)
  shapes = networks.shapes_of(plain, 8)
  assert shapes == networks.shapes_of(remat, 8)
  params, _ = golden_weights.fill(shapes)
  z = np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32)
  rest = [jnp.array([10.5, 500.0])]
  if isinstance(plain, unet.UNet):
    rest.append(jnp.array([3, 10]))
  desired, actual = (
    _loss_and_gradients(network, params, z, rest) for network in (plain, remat)
  )
  leaves = [jax.tree.leaves(gradients) for _, gradients in (actual, desired)]
  largest = max(np.abs(leaf).max() for leaf in leaves[1])
  for a, b in zip(*leaves, strict=True):
    # Gradients that are zero by structure are rounding on both sides.
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest)
  np.testing.assert_allclose(actual[0], desired[0], rtol=1e-6)


def test_remat_wraps_each_block():
  network = networks.make_unet(remat=True)
  z, time, label = jnp.zeros((1, 8, 8, 3)), jnp.zeros(1), jnp.zeros(1, int)
  params = networks.shapes_of(network, 8)
  jaxpr = jax.make_jaxpr(lambda p: network.apply({"params": p}, z, time, label))
  blocks = {name for name in params if name[:3] in ("inp", "mid")}
  blocks |= {name for name in params if name.startswith("output")}
  wrapped = [e for e in jaxpr(params).eqns if "prevent_cse" in e.params]
  assert len(wrapped) == len(blocks - {"input_blocks_0_0"})


def test_the_classifiers_last_layer_reads_all_pixels_and_the_time():
  network = networks.make_classifier()
  params, _ = golden_weights.fill(networks.shapes_of(network, 8))
  apply = functools.partial(networks.jit(network.apply), {"params": params})
  z = np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32)
  logits = apply(z, jnp.array([0.0, 500.0]))
  assert logits.shape == (2, 10)
  assert logits.dtype == jnp.float32
  assert (
    np.abs(logits - apply(z, jnp.array([9.0, 400.0]))).min(axis=1).max() > 0
  )
  # Attention alone would not see the order of the pixels.
  flipped = apply(z[:, ::-1, ::-1], jnp.array([0.0, 500.0]))
  assert np.abs(logits - flipped).max() > 1e-3


@pytest.fixture(scope="module")
def late():
  """Return a network with late conditioning, of random parameters."""
  network = networks.make_unet(condition="decoder", num_res_blocks=2)
  params, _ = golden_weights.fill(networks.shapes_of(network, 8))
  return parametrization.Model(network, "uniform", SCHEDULE), params


@pytest.mark.parametrize("count", [2, 3])
def test_branches_of_late_conditioning_equal_separate_calls(late, count):
  model, params = late
  denoise = model.denoiser(params)
  z = np.random.default_rng(0).standard_normal((4, 8, 8, 3), np.float32)
  logsnr = jnp.linspace(-9.0, 9.0, 4)
  labels = jnp.arange(4 * count).reshape(count, 4) % 11

  @networks.jit
  def both():
    separate = [denoise(z, logsnr, label).eps for label in labels]
    together = diffusion.denoise_branches(denoise, z, logsnr, labels)
    return jnp.stack(separate), together.eps

  separate, together = both()
  np.testing.assert_allclose(together, separate, atol=1e-5, rtol=1e-5)
  assert (abs(separate[0] - separate[1]).max(axis=(1, 2, 3)) > 1e-2).all()


def test_late_conditioning_hides_the_label_from_the_encoder(late):
  """Of all layers before the middle, none has a gradient by label."""
  model, params = late
  z = np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32)

  def outputs(label):
    _, state = model.network.apply(
      {"params": params},
      *(z, jnp.array([10.0, 500.0]), label),
      capture_intermediates=True,
    )
    return state["intermediates"]

  one, other = outputs(jnp.array([0, 1])), outputs(jnp.array([2, 10]))
  seen = {
    name
    for name in one
    if name != "__call__"
    and any(
      (a != b).any()
      for a, b in zip(
        jax.tree.leaves(one[name]), jax.tree.leaves(other[name]), strict=True
      )
    )
  }
  after = {
    name
    for name in one
    if name.startswith(("middle", "output_blocks", "out_", "label_emb"))
  }
  assert seen == after
  assert any(name.startswith("input_blocks") for name in one)


@pytest.mark.parametrize(
  ("module", "most"), [(imagenet64, 1.6), (imagenet128, 1.6), (embedded, 1.75)]
)
def test_a_guided_evaluation_with_late_conditioning_costs(module, most):
  config = module.get_config()
  assert build.branch_cost(config) == 1.0
  config.model.condition = "decoder"
  assert 1.3 < 1 + build.branch_cost(config) < most
