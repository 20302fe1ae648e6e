"""The networks against guided-diffusion's: see tests/golden/README.md."""

import functools
import json
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgd.models import blocks
from cfgd.runtime import target
from tests.models import golden_weights
from tests.models import networks

_STRIDE = 127  # activations are stored thinned out, and their norm


class Case:
  """The arrays of one network, the network, and its weights by the rule."""

  def __init__(self, arrays, name, shared=None):
    self.name = name
    self._arrays = arrays
    self._shared = shared or name
    self.theirs = json.loads(str(self["config_json"]))
    self.is_unet = "pool" not in self.theirs
    self.network = networks.like(self.theirs)
    shapes = networks.shapes_of(self.network, self.theirs["image_size"])
    self.params, self.drawn = golden_weights.fill(shapes)

  def __contains__(self, key):
    return f"{self.name}/{key}" in self._arrays

  def __getitem__(self, key):
    name = self.name if key in self else self._shared
    return self._arrays[f"{name}/{key}"]

  def keys(self, prefix):
    prefix = f"{self.name}/{prefix}"
    return [k[len(prefix) :] for k in self._arrays if k.startswith(prefix)]

  def inputs(self, call):
    """Return what the network is called with."""
    inputs = _nhwc(self["x_nchw"][call]), self["timesteps"][call]
    if not self.is_unet:
      return inputs
    if "labels" in self:
      return *inputs, self["labels"][call]
    return *inputs, np.zeros(2, np.int32)

  def targets(self, call):
    """Return what the gradient's scalar is made with, besides the output."""
    if self.is_unet:
      return _nhwc(self["cotangent_nchw"])[call]
    return self["labels"][call]

  def _forward(self, params, z, rest):
    return self.network.apply(
      {"params": params},
      *(z, *rest),
      capture_intermediates=True,
      mutable=["intermediates"],
    )

  def _scalar(self, params, z, rest, target):
    result = self._forward(params, z, rest)
    if self.is_unet:
      return (result[0] * target).sum(), result
    log_prob = jax.nn.log_softmax(result[0])
    return log_prob[np.arange(len(target)), target].sum(), result

  @functools.cached_property
  def has_gradients(self):
    return "param_grad_norm" in self

  @functools.cached_property
  def _compiled(self):
    # Compilation is most of these tests' time: one program for all of them.
    if self.has_gradients:
      gradient = jax.grad(self._scalar, argnums=(0, 1), has_aux=True)
      return networks.jit(gradient)
    return networks.jit(lambda *inputs: (None, self._forward(*inputs)))

  @functools.cache  # noqa: B019
  def run(self, call):
    """Return gradients, the output, and what each module returned."""
    z, *rest = self.inputs(call)
    inputs = self.params, z, rest
    if self.has_gradients:
      inputs = *inputs, self.targets(call)
    gradients, (out, captured) = self._compiled(*inputs)
    return gradients, out, captured["intermediates"]


def _nhwc(x):
  return np.moveaxis(x, -3, -1)


def _nchw(x):
  return np.moveaxis(np.asarray(x), -1, -3)


def _error(actual, desired):
  """Return the largest difference in root mean squares of `desired`."""
  desired = np.float64(desired)
  return np.abs(actual - desired).max() / np.sqrt(np.mean(desired**2))


@functools.cache
def _case(golden, kind, name):
  shared = {"small_neworder": "small", "64like_uncond": "64like_learnsigma"}
  return Case(dict(golden(f"adm_{kind}")), name, shared.get(name))


@pytest.fixture
def case(request, golden):
  return _case(golden, *request.param)


# The others have all their parts at a third of the work.
_SLOW = ("unet/64like_learnsigma", "classifier/64like")


def _cases(*names):
  marks = {name: [pytest.mark.slow] for name in _SLOW}
  params = [
    pytest.param(name.split("/"), marks=marks.get(name, []), id=name)
    for name in names
  ]
  return pytest.mark.parametrize("case", params, indirect=True)


_UNETS = (
  *("unet/small", "unet/small_neworder", "unet/64like_uncond"),
  *("unet/64like_learnsigma", "unet/128like_learnsigma"),
)
_CLASSIFIERS = ("classifier/64like", "classifier/128like")


@_cases(*_UNETS, *_CLASSIFIERS)
def test_weights_follow_the_rule(case):
  assert set(case.drawn) == set(case["param_names"])
  for name, norm in zip(case["param_names"], case["param_l2"], strict=True):
    actual = np.linalg.norm(np.float64(case.drawn[name]))
    np.testing.assert_allclose(actual, norm, rtol=1e-12)


@_cases(*_UNETS)
def test_unet_output(case):
  for call, desired in enumerate(case["out_nchw"]):
    _, out, _ = case.run(call)
    assert _error(_nchw(out), desired) < 1e-4, call


@_cases(*_CLASSIFIERS)
def test_classifier_output(case):
  for call, desired in enumerate(case["logits"]):
    _, logits, _ = case.run(call)
    assert logits.dtype == jnp.float32
    assert _error(logits, desired) < 1e-4, call
    label = case["labels"][call]
    log_prob = jax.nn.log_softmax(logits)[np.arange(len(label)), label]
    desired = case["log_prob_label"][call]
    np.testing.assert_allclose(log_prob, desired, rtol=0, atol=2e-5)


def _activation(modules, name):
  """Return what one of guided-diffusion's blocks returned, in NCHW."""
  get = lambda module: modules[module]["__call__"][0]  # noqa: E731
  if name == "out.1":
    return _nchw(nn.silu(get("out_0")))
  name = name.replace(".", "_")
  # A block is a sequence of modules; its result is the last one's.
  return _nchw(get(max(m for m in modules if re.fullmatch(rf"{name}_\d", m))))


@_cases(*(name for name in (*_UNETS, *_CLASSIFIERS) if "uncond" not in name))
def test_block_activations(case):
  _, _, modules = case.run(int(case["act_call"]))
  names = case.keys("act/")
  levels = len(case.theirs["channel_mult"])
  num_blocks = levels * (case.theirs["num_res_blocks"] + 1)
  # Both ways and the middle; or the way down, the middle and what is pooled.
  assert len(names) == (2 * num_blocks + 1 if case.is_unet else num_blocks + 2)
  for name in names:
    actual = _activation(modules, name)
    assert _error(actual.ravel()[::_STRIDE], case[f"act/{name}"]) < 1e-4, name
    norm = np.linalg.norm(np.float64(actual))
    np.testing.assert_allclose(norm, case[f"act_l2/{name}"], rtol=1e-5)


@_cases("unet/small", "unet/small_neworder")
def test_time_embedding(case):
  for call, time in enumerate(case["timesteps"]):
    sinusoids = blocks.time_embedding(time, case.theirs["model_channels"])
    np.testing.assert_allclose(sinusoids, case["temb"][call], atol=2e-4)
    _, _, modules = case.run(call)
    actual = modules["time_embed_2"]["__call__"][0]
    assert _error(actual, case["time_embed_out"][call]) < 1e-4


def _assert_parameter_gradients(case, call, gradients):
  gradients = golden_weights.flatten(gradients)
  norms, probes = case["param_grad_norm"], case["param_grad_probe"]
  for i, name in enumerate(case["param_names"]):
    gradient = np.float64(golden_weights.to_torch(*gradients[name]))
    norm = np.linalg.norm(gradient)
    if case["param_grad_is_zero"][i]:
      assert norm < 1e-3, name
      continue
    np.testing.assert_allclose(norm, norms[call, i], rtol=1e-4, err_msg=name)
    actual = np.sum(gradient * golden_weights.probe(name, gradient.shape))
    assert abs(actual - probes[call, i]) < 3e-4 * norm, name


@_cases("unet/small", "unet/small_neworder", "classifier/64like")
def test_gradients(case):
  tolerance = 2e-4 if case.is_unet else 5e-4
  for call in range(len(case["timesteps"])):
    (of_params, of_z), _, _ = case.run(call)
    assert _error(_nchw(of_z), case["grad_x_nchw"][call]) < tolerance, call
    _assert_parameter_gradients(case, call, of_params)


@pytest.mark.parametrize("name", ["small", "small_neworder"])
def test_what_is_compiled_for_accelerators(golden, name, monkeypatch):
  """Their convolutions, resampling and layouts, computed here."""
  monkeypatch.setattr(target, "platform", lambda: "tpu")
  case = Case(dict(golden("adm_unet")), name, "small")
  (of_params, of_z), out, _ = case.run(0)
  assert _error(_nchw(out), case["out_nchw"][0]) < 1e-4
  assert _error(_nchw(of_z), case["grad_x_nchw"][0]) < 2e-4
  _assert_parameter_gradients(case, 0, of_params)


# Shapes at full size, and parameter counts of the variants.
_FULL = {
  "imagenet64": {
    "image_size": 64,
    "model_channels": 192,
    "channel_mult": (1, 2, 3, 4),
    "num_res_blocks": 3,
    "num_heads": 4,
    "num_head_channels": 64,
  },
  "imagenet128": {
    "image_size": 128,
    "model_channels": 256,
    "channel_mult": (1, 1, 2, 3, 4),
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_head_channels": 0,
    "new_attention_order": False,
  },
  "classifier64": {
    "image_size": 64,
    "model_channels": 128,
    "channel_mult": (1, 2, 3, 4),
    "num_res_blocks": 4,
    "num_head_channels": 64,
    "num_classes": 1000,
  },
  "classifier128": {
    "image_size": 128,
    "model_channels": 128,
    "channel_mult": (1, 1, 2, 3, 4),
    "num_res_blocks": 2,
    "num_head_channels": 64,
    "num_classes": 1000,
  },
}


@functools.cache
def _full_shapes(name, **changes):
  """Return {state-dict key: shape in PyTorch} of a published model."""
  arguments = _FULL[name] | {"attention_resolutions": (32, 16, 8)} | changes
  size = arguments.pop("image_size")
  classifier = "num_classes" in arguments
  make = networks.make_classifier if classifier else networks.make_unet
  shapes = networks.shapes_of(make(**arguments), size)
  return {
    key: golden_weights.torch_shape(path, leaf.shape)
    for key, (path, leaf) in golden_weights.flatten(shapes).items()
  }


def _count(shapes):
  return sum(math.prod(shape) for shape in shapes.values())


@pytest.mark.parametrize("name", list(_FULL))
def test_names_and_shapes_of_the_published_models(golden, name):
  arrays = golden("adm_param_shapes")
  changes = {}
  if "classifier" not in name:
    changes = {"out_channels": 6, "num_labels": 1000}
  actual = _full_shapes(name, **changes)
  desired = {
    str(key): tuple(int(side) for side in shape if side)
    for key, shape in zip(
      arrays[f"{name}/names"], arrays[f"{name}/shapes"], strict=True
    )
  }
  assert actual == desired
  assert _count(actual) == arrays[f"{name}/counts"][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet64", "imagenet128"])
def test_sizes_of_the_variants(golden, name):
  variants = ((6, 1000), (3, 1000), (3, 1001), (3, 0))
  counts = golden("adm_param_shapes")[f"{name}/counts"]
  for (channels, labels), desired in zip(variants, counts, strict=True):
    shapes = _full_shapes(name, out_channels=channels, num_labels=labels)
    assert _count(shapes) == desired, (channels, labels)
    assert shapes["out.2.weight"][0] == channels
    assert ("label_emb.weight" in shapes) == bool(labels)
