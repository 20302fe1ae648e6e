"""ADM's noisy classifier (Dhariwal & Nichol, arXiv:2105.05233), p(c|z, time).

The U-Net's way down and middle, read out by attention. Its gradient with
respect to z is what classifier guidance adds to the noise prediction.
"""

import flax.linen as nn
import jax.numpy as jnp

from cfgd.models import blocks
from cfgd.models import unet


class Classifier(unet.Encoder, kw_only=True):
  """Predict the label from (z, time).

  Attributes:
    num_classes: size of the result.
  """

  num_classes: int

  @nn.compact
  def __call__(self, z, time, dropout_keys=None):
    """Return the logits.

    Args:
      z: [B, H, W, C]; H and W are those that the network was initialised at.
      time: [B] float on the scale 0 to 1000.
      dropout_keys: [B] random keys; None switches dropout off.

    Returns:
      [B, num_classes] float32.
    """
    h, _ = self.encode(z, self.embed_time(time), dropout_keys)
    h = nn.silu(blocks.GroupNorm(self.dtype, name="out_0")(h))
    pool = blocks.AttentionPool(
      self.num_classes, self.num_head_channels, self.dtype, name="out_2"
    )
    return pool(h).astype(jnp.float32)
