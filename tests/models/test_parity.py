"""The networks against guided-diffusion's: see tests/golden/README.md."""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgd.models import blocks
from cfgd.runtime import target
from tests.models import golden_cases
from tests.models import golden_weights
from tests.models import networks

_error, _nchw = golden_cases.error, golden_cases.nchw
_STRIDE = 127  # activations are stored thinned out, and their norm


@functools.cache
def _case(golden, kind, name):
  return golden_cases.Case(dict(golden(f"adm_{kind}")), name)


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


@_cases("unet/small", "unet/small_neworder", "classifier/64like")
def test_gradients(case):
  tolerance = 2e-4 if case.is_unet else 5e-4
  for call in range(len(case["timesteps"])):
    (of_params, of_z), _, _ = case.run(call)
    assert _error(_nchw(of_z), case["grad_x_nchw"][call]) < tolerance, call
    errors = case.parameter_errors(call, of_params)
    assert errors["of_zero"] < 1e-3, call
    assert errors["norm"] < 1e-4, call
    assert errors["projection"] < 3e-4, call


@pytest.mark.parametrize("name", ["small", "small_neworder"])
def test_what_is_compiled_for_accelerators(golden, name, monkeypatch):
  """Their convolutions, resampling and layouts, computed here."""
  monkeypatch.setattr(target, "platform", lambda: "tpu")
  case = golden_cases.Case(dict(golden("adm_unet")), name)
  (of_params, of_z), out, _ = case.run(0)
  assert _error(_nchw(out), case["out_nchw"][0]) < 1e-4
  assert _error(_nchw(of_z), case["grad_x_nchw"][0]) < 2e-4
  errors = case.parameter_errors(0, of_params)
  assert errors["of_zero"] < 1e-3
  assert errors["norm"] < 1e-4
  assert errors["projection"] < 3e-4


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
