"""The U-Net of ADM (Dhariwal & Nichol, arXiv:2105.05233), sized by numbers.

The paper's networks are this one at 192 and 256 channels, with one more row in
the label embedding: the null label of the unconditional model.
"""

from typing import Any
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfgd.models import blocks


class UNet(nn.Module):
  """Predict noise from (z, time, label).

  Attributes:
    model_channels: channels of the first level.
    channel_mult: channels of each level as multiples of model_channels.
    num_res_blocks: residual blocks per level on the way down; one more on the
      way up.
    attention_resolutions: heights in pixels of the levels with attention.
    num_heads: heads of each attention block, used if num_head_channels is 0.
    num_head_channels: channels of a head; 0 leaves the choice to num_heads.
    new_attention_order: see `blocks.AttentionBlock`.
    num_labels: rows of the label embedding, null label included; 0 makes a
      network without labels.
    out_channels: channels of the result.
    dropout: in the residual blocks.
    dtype: of matmuls and convolutions; parameters are float32.
  """

  model_channels: int
  channel_mult: tuple[float, ...]
  num_res_blocks: int
  attention_resolutions: tuple[int, ...]
  num_heads: int
  num_head_channels: int
  new_attention_order: bool
  num_labels: int
  out_channels: int
  dropout: float
  dtype: Any

  @nn.compact
  def __call__(self, z, time, label, dropout_keys=None):
    """Return the network's output.

    Args:
      z: [B, H, W, C]; H and W must halve evenly once per level.
      time: [B] float on the scale 0 to 1000.
      label: [B] int below num_labels.
      dropout_keys: [B] random keys; None switches dropout off.

    Returns:
      [B, H, W, out_channels] float32.
    """
    embedding = self._embed(time, label)
    h = z.astype(self.dtype)
    width = int(self.channel_mult[0] * self.model_channels)
    h = blocks.conv(width, 3, "input_blocks_0_0", self.dtype)(h)
    skips = [h]
    h = self._down(h, skips, embedding, dropout_keys)
    h = self._res("middle_block_0", h.shape[-1], dropout_keys)(h, embedding)
    h = self._attention("middle_block_1", h.shape[-1])(h)
    h = self._res("middle_block_2", h.shape[-1], dropout_keys)(h, embedding)
    h = self._up(h, skips, embedding, dropout_keys)
    assert not skips, len(skips)
    assert h.shape == (*z.shape[:-1], width), (h.shape, z.shape)

    h = nn.silu(blocks.GroupNorm(self.dtype, name="out_0")(h))
    h = blocks.conv(self.out_channels, 3, "out_2", self.dtype, zero=True)(h)
    return h.astype(jnp.float32)

  def _embed(self, time, label):
    """Return the [B, 4 model_channels] embedding of time plus label."""
    width = 4 * self.model_channels
    h = blocks.time_embedding(time, self.model_channels)
    h = blocks.dense(width, "time_embed_0", self.dtype)(h)
    h = blocks.dense(width, "time_embed_2", self.dtype)(nn.silu(h))
    if self.num_labels:
      h += nn.Embed(
        self.num_labels,
        width,
        embedding_init=nn.initializers.normal(1.0),
        dtype=self.dtype,
        name="label_emb",
      )(label)
    return h

  def _down(self, h, skips, embedding, dropout_keys):
    """Run the way down; append each block's result to skips."""
    last = len(self.channel_mult) - 1
    index = 1
    for level, mult in enumerate(self.channel_mult):
      width = int(mult * self.model_channels)
      for _ in range(self.num_res_blocks):
        name = f"input_blocks_{index}"
        h = self._res(f"{name}_0", width, dropout_keys)(h, embedding)
        if h.shape[1] in self.attention_resolutions:
          h = self._attention(f"{name}_1", width)(h)
        skips.append(h)
        index += 1
      if level != last:
        name = f"input_blocks_{index}_0"
        h = self._res(name, width, dropout_keys, "down")(h, embedding)
        skips.append(h)
        index += 1
    return h

  def _up(self, h, skips, embedding, dropout_keys):
    """Run the way up; consume the skips from the end."""
    index = 0
    for level, mult in reversed(list(enumerate(self.channel_mult))):
      width = int(mult * self.model_channels)
      for block in range(self.num_res_blocks + 1):
        name = f"output_blocks_{index}"
        part = 1
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = self._res(f"{name}_0", width, dropout_keys)(h, embedding)
        if h.shape[1] in self.attention_resolutions:
          h = self._attention(f"{name}_{part}", width)(h)
          part += 1
        if level and block == self.num_res_blocks:
          up = self._res(f"{name}_{part}", width, dropout_keys, "up")
          h = up(h, embedding)
        index += 1
    return h

  def _res(self, name, features, dropout_keys, resample="none"):
    block = blocks.ResBlock(
      features, resample, self.dropout, self.dtype, name=name
    )
    keys = dropout_keys
    if keys is not None:
      # A different mask in each block, named by its place, not by call order.
      place = zlib.crc32(name.encode())
      keys = jax.vmap(lambda key: jax.random.fold_in(key, place))(keys)
    return lambda h, embedding: block(h, embedding, keys)

  def _attention(self, name, features):
    heads = self.num_heads
    if self.num_head_channels:
      heads = features // self.num_head_channels
    return blocks.AttentionBlock(
      heads, self.new_attention_order, self.dtype, name=name
    )
