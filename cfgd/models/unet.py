"""The U-Net of ADM (Dhariwal & Nichol, arXiv:2105.05233).

The paper's networks have 192 and 256 channels, and one more row in the label
embedding: the null label of the unconditional model.
"""

import functools
from typing import Any
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfgd.models import blocks


class Encoder(nn.Module, kw_only=True):
  """The downward path and the middle, shared by U-Net and classifier.

  A base class, not a submodule, so that parameters have the paths of published
  weights.

  Attributes:
    model_channels: channels of the first level.
    channel_mult: channels of each level as multiples of model_channels.
    num_res_blocks: residual blocks per level of the downward path.
    attention_resolutions: heights in pixels of the levels with attention.
    num_head_channels: channels of a head.
    new_attention_order: see `blocks.AttentionBlock`.
    dropout: in the residual blocks.
    dtype: of matmuls and convolutions; parameters are float32.
    remat: recompute each block's activations in the backward pass: less memory,
      a third more work.
  """

  model_channels: int
  channel_mult: tuple[float, ...]
  num_res_blocks: int
  attention_resolutions: tuple[int, ...]
  num_head_channels: int
  new_attention_order: bool
  dropout: float
  dtype: Any
  remat: bool

  def embed_time(self, time):
    """Return the [B, 4 model_channels] float32 embedding of time."""
    # Always float32: it costs little here, and neighbouring times differ only
    # in the last digits.
    make = functools.partial(
      blocks.dense, 4 * self.model_channels, dtype=jnp.float32
    )
    h = blocks.time_embedding(time, self.model_channels)
    return make(name="time_embed_2")(nn.silu(make(name="time_embed_0")(h)))

  def encode(self, z, embedding, dropout_keys):
    """Run the downward path and the middle.

    Returns (the middle's output, [outputs of the blocks before it]).
    """
    h = z.astype(self.dtype)
    width = int(self.channel_mult[0] * self.model_channels)
    h = blocks.conv(width, 3, "input_blocks_0_0", self.dtype)(h)
    skips = [h]
    h = self._down(h, skips, embedding, dropout_keys)
    h = self.res("middle_block_0", h.shape[-1], dropout_keys)(h, embedding)
    h = self.attention("middle_block_1", h.shape[-1])(h)
    h = self.res("middle_block_2", h.shape[-1], dropout_keys)(h, embedding)
    return h, skips

  def _down(self, h, skips, embedding, dropout_keys):
    """Run the downward path; append each block's output to skips."""
    last = len(self.channel_mult) - 1
    index = 1
    for level, mult in enumerate(self.channel_mult):
      width = int(mult * self.model_channels)
      for _ in range(self.num_res_blocks):
        name = f"input_blocks_{index}"
        h = self.res(f"{name}_0", width, dropout_keys)(h, embedding)
        if h.shape[1] in self.attention_resolutions:
          h = self.attention(f"{name}_1", width)(h)
        skips.append(h)
        index += 1
      if level != last:
        name = f"input_blocks_{index}_0"
        h = self.res(name, width, dropout_keys, "down")(h, embedding)
        skips.append(h)
        index += 1
    return h

  def res(self, name, features, dropout_keys, resample="none"):
    """Return a residual block as a function of (h, embedding)."""
    kind = nn.remat(blocks.ResBlock) if self.remat else blocks.ResBlock
    block = kind(features, resample, self.dropout, self.dtype, name=name)
    keys = dropout_keys
    if keys is not None:
      # Masks differ between blocks by their names, not by call order.
      place = zlib.crc32(name.encode())
      keys = jax.vmap(lambda key: jax.random.fold_in(key, place))(keys)
    return lambda h, embedding: block(h, embedding, keys)

  def attention(self, name, features):
    """Return an attention block."""
    kind = blocks.AttentionBlock
    kind = nn.remat(kind) if self.remat else kind
    heads = self.heads_of(features)
    return kind(heads, self.new_attention_order, self.dtype, name=name)

  def heads_of(self, features):
    """Return the number of heads of a block with this many channels."""
    assert self.num_head_channels > 0, self.num_head_channels
    heads, rest = divmod(features, self.num_head_channels)
    assert not rest, (features, self.num_head_channels)
    return heads


class UNet(Encoder, kw_only=True):
  """Predict noise from (z, time, label).

  The upward path has one more residual block per level than the downward one.

  Attributes:
    num_heads: heads of each attention block if num_head_channels is 0.
    num_labels: rows of the label embedding, including the null label; 0 for a
      network without labels.
    out_channels: twice z's channels if the network predicts its variance, too.
  """

  num_heads: int
  num_labels: int
  out_channels: int

  @nn.compact
  def __call__(self, z, time, label, dropout_keys=None):
    """Return the network's output.

    Args:
      z: [B, H, W, C]; H and W must halve evenly once per level.
      time: [B] float on the scale 0 to 1000.
      label: [B] int below num_labels; ignored if that is 0.
      dropout_keys: [B] random keys; None switches dropout off.

    Returns:
      [B, H, W, out_channels] float32.
    """
    embedding = self.embed_time(time)
    if self.num_labels:
      embedding += nn.Embed(
        self.num_labels,
        embedding.shape[-1],
        embedding_init=nn.initializers.normal(1.0),
        name="label_emb",
      )(label)
    h, skips = self.encode(z, embedding, dropout_keys)
    h = self._up(h, skips, embedding, dropout_keys)
    assert not skips, len(skips)
    assert h.shape[:-1] == z.shape[:-1], (h.shape, z.shape)

    h = nn.silu(blocks.GroupNorm(self.dtype, name="out_0")(h))
    h = blocks.conv(self.out_channels, 3, "out_2", self.dtype, zero=True)(h)
    return h.astype(jnp.float32)

  def _up(self, h, skips, embedding, dropout_keys):
    """Run the upward path; consume the skips from the end."""
    index = 0
    for level, mult in reversed(list(enumerate(self.channel_mult))):
      width = int(mult * self.model_channels)
      for block in range(self.num_res_blocks + 1):
        name = f"output_blocks_{index}"
        part = 1
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = self.res(f"{name}_0", width, dropout_keys)(h, embedding)
        if h.shape[1] in self.attention_resolutions:
          h = self.attention(f"{name}_{part}", width)(h)
          part += 1
        if level and block == self.num_res_blocks:
          up = self.res(f"{name}_{part}", width, dropout_keys, "up")
          h = up(h, embedding)
        index += 1
    return h

  def heads_of(self, features):
    """Return the number of heads, by width or by count."""
    if self.num_head_channels:
      return super().heads_of(features)
    return self.num_heads
