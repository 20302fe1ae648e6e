"""Small networks to test with, and guided-diffusion's by their arguments."""

import jax
import jax.numpy as jnp

from cfgd.models import classifier
from cfgd.models import unet

_SHARED = {
  "model_channels": 32,
  "channel_mult": (1, 2),
  "num_res_blocks": 1,
  "attention_resolutions": (4,),
  "new_attention_order": True,
  "dropout": 0.5,
  "dtype": "float32",
  "remat": False,
}


def make_unet(**changes):
  own = {"num_heads": 2, "num_head_channels": 0}
  own |= {"num_labels": 11, "out_channels": 3}
  own |= {"condition": "all", "takes_w": False}
  return unet.UNet(**_SHARED | own | changes)


def make_classifier(**changes):
  own = {"num_head_channels": 16, "num_classes": 10}
  return classifier.Classifier(**_SHARED | own | changes)


def like(theirs):
  """Make the network of guided-diffusion's arguments."""
  arguments = {
    "model_channels": theirs["model_channels"],
    "channel_mult": tuple(theirs["channel_mult"]),
    "num_res_blocks": theirs["num_res_blocks"],
    # Factors there, heights here.
    "attention_resolutions": tuple(
      theirs["image_size"] // factor
      for factor in theirs["attention_resolutions"]
    ),
    "num_head_channels": max(theirs["num_head_channels"], 0),
    "new_attention_order": theirs["use_new_attention_order"],
  }
  if "pool" in theirs:
    return make_classifier(num_classes=theirs["out_channels"], **arguments)
  return make_unet(
    num_heads=theirs["num_heads"],
    num_labels=theirs["num_classes"] or 0,
    out_channels=theirs["out_channels"],
    **arguments,
  )


def shapes_of(network, size):
  """Return the parameters' shapes without computing any."""
  inputs = [jnp.zeros((1, size, size, 3)), jnp.zeros(1)]
  if isinstance(network, unet.UNet):
    inputs.append(jnp.zeros(1, jnp.int32))
  return jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]


def jit(function):
  """Compile with little optimisation: tests run once and wait for it."""
  options = {"xla_backend_optimization_level": 0}
  return jax.jit(function, compiler_options=options)
