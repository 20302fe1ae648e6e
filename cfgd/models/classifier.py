"""ADM's noisy classifier (Dhariwal & Nichol, arXiv:2105.05233), p(c|z, time).

The U-Net's downward path and middle, with an attention readout. Classifier
guidance adds its gradient with respect to z to the noise prediction.
"""

import flax.linen as nn
import jax.numpy as jnp

from cfgd.models import blocks
from cfgd.models import unet


class Classifier(unet.Encoder, kw_only=True):
  """Predict the label, of num_classes, from (z, time)."""

  num_classes: int

  @nn.compact
  def __call__(self, z, time, dropout_keys=None):
    """Return the logits [B, num_classes] float32; see `UNet` for the arguments.

    H and W must be those that the network was initialised with.
    """
    embedding = self.embed_time(time)
    h = self.down(z, embedding, dropout_keys)[-1]
    h = self.middle(h, embedding, dropout_keys)
    h = nn.silu(blocks.GroupNorm(self.dtype, name="out_0")(h))
    pool = blocks.AttentionPool(
      self.num_classes, self.num_head_channels, self.dtype, name="out_2"
    )
    return pool(h).astype(jnp.float32)
