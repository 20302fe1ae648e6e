"""ADM's noisy classifier (Dhariwal & Nichol, arXiv:2105.05233), p(c|z, time).

The U-Net's downward path and middle, with an attention readout. Classifier
guidance adds its gradient with respect to z to the noise prediction.
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
      z: [B, H, W, C], of the H and W that the network was initialised with.
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
