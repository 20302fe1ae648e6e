"""Networks whose golden arrays are in tests/golden: see its README.md."""

import functools
import json

import jax
import numpy as np

from tests.models import golden_weights
from tests.models import networks

# Variants of a network share its inputs.
SHARED = {"small_neworder": "small", "64like_uncond": "64like_learnsigma"}


class Case:
  """The arrays of one network, the network, and its weights by the rule."""

  def __init__(self, arrays, name, dtype="float32"):
    self.name = name
    self._arrays = arrays
    self._shared = SHARED.get(name, name)
    self.theirs = json.loads(str(self["config_json"]))
    self.is_unet = "pool" not in self.theirs
    self.network = networks.like(self.theirs).clone(dtype=dtype)
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
    inputs = nhwc(self["x_nchw"][call]), self["timesteps"][call]
    if not self.is_unet:
      return inputs
    if "labels" in self:
      return *inputs, self["labels"][call]
    return *inputs, np.zeros(2, np.int32)

  def targets(self, call):
    """Return what the gradient's scalar is made with, besides the output."""
    if self.is_unet:
      return nhwc(self["cotangent_nchw"])[call]
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

  def parameter_errors(self, call, gradients):
    """Return the largest errors of the parameters' gradients.

    "norm" and "projection" are relative to a gradient's norm; "of_zero" is the
    norm of those that are zero.
    """
    errors = {"norm": [], "projection": [], "of_zero": []}
    gradients = golden_weights.flatten(gradients)
    for i, name in enumerate(self["param_names"]):
      gradient = np.float64(golden_weights.to_torch(*gradients[name]))
      norm = np.linalg.norm(gradient)
      if self["param_grad_is_zero"][i]:
        errors["of_zero"].append(norm)
        continue
      desired = self["param_grad_norm"][call, i]
      errors["norm"].append(abs(norm - desired) / desired)
      actual = np.sum(gradient * golden_weights.probe(name, gradient.shape))
      desired = self["param_grad_probe"][call, i]
      errors["projection"].append(abs(actual - desired) / norm)
    return {
      name: float(np.max(each, initial=0.0)) for name, each in errors.items()
    }


def nhwc(x):
  return np.moveaxis(x, -3, -1)


def nchw(x):
  return np.moveaxis(np.asarray(x), -1, -3)


def error(actual, desired):
  """Return the largest difference in root mean squares of `desired`."""
  desired = np.float64(desired)
  return np.abs(actual - desired).max() / np.sqrt(np.mean(desired**2))
