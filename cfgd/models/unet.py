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

# w is embedded as a time of so many w: the fastest sinusoid has a period of 0.6
# in w, and the slower half of them is as good as linear in it.
_W_SCALE = 10.0


def _repeat(rows, copies):
  """Return copies of a batch, one after the other."""
  return rows if copies == 1 else jnp.concatenate([rows] * copies)


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

  def down(self, z, embedding, dropout_keys):
    """Run the downward path; return the outputs of its blocks."""
    h = z.astype(self.dtype)
    width = int(self.channel_mult[0] * self.model_channels)
    h = blocks.conv(width, 3, "input_blocks_0_0", self.dtype)(h)
    skips = [h]
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
    return skips

  def middle(self, h, embedding, dropout_keys, copies=1):
    """Run the middle; for several embeddings if h is so many copies."""
    shared = {"copies": copies, "own": 0}
    first = self.res("middle_block_0", h.shape[-1], dropout_keys, **shared)
    h = self.attention("middle_block_1", h.shape[-1])(first(h, embedding))
    return self.res("middle_block_2", h.shape[-1], dropout_keys)(h, embedding)

  def res(self, name, features, dropout_keys, resample="none", **shared):
    """Return a residual block as a function of (h, embedding)."""
    kind = nn.remat(blocks.ResBlock) if self.remat else blocks.ResBlock
    block = kind(
      features, resample, self.dropout, self.dtype, **shared, name=name
    )
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
  """Predict noise from (z, time, label), and perhaps guidance strength w.

  The upward path has one more residual block per level than the downward one.

  Attributes:
    condition: "all" if label and w enter every block, or "decoder" if only
      those from the middle on, so that the downward path is the same for all
      labels (section 5 of the paper).
    takes_w: whether the guidance strength is an input, as in arXiv:2210.03142.
    num_heads: heads of each attention block if num_head_channels is 0.
    num_labels: rows of the label embedding, including the null label; 0 for a
      network without labels.
    out_channels: twice z's channels if the network predicts its variance, too.
  """

  condition: str
  takes_w: bool
  num_heads: int
  num_labels: int
  out_channels: int

  @nn.compact
  def __call__(self, z, time, label, dropout_keys=None, w=None):
    """Return the network's output.

    With condition="decoder" there may be N labels for each z; without dropout.

    Args:
      z: [B, H, W, C]; H and W must halve evenly once per level.
      time: [B] float on the scale 0 to 1000.
      label: [B], or [N B] label by label; int below num_labels; ignored if that
        is 0.
      dropout_keys: [B] random keys; None switches dropout off.
      w: [B] or [N B] guidance strength where takes_w; None is 0.

    Returns:
      [B, H, W, out_channels] float32, or [N B, ...].
    """
    copies = label.shape[0] // z.shape[0]
    assert copies * z.shape[0] == label.shape[0], (z.shape, label.shape)
    assert copies == 1 or (self.condition == "decoder" and dropout_keys is None)
    early = self.embed_time(time)
    late = self._embed_condition(_repeat(early, copies), label, w)
    skips = self.down(
      z, late if self.condition == "all" else early, dropout_keys
    )
    h = self.middle(_repeat(skips[-1], copies), late, dropout_keys, copies)
    h = self._up(h, skips, late, dropout_keys, copies)
    assert not skips, len(skips)
    assert h.shape[1:-1] == z.shape[1:-1], (h.shape, z.shape)

    h = nn.silu(blocks.GroupNorm(self.dtype, name="out_0")(h))
    h = blocks.conv(self.out_channels, 3, "out_2", self.dtype, zero=True)(h)
    return h.astype(jnp.float32)

  def _embed_condition(self, embedding, label, w):
    """Add the embeddings of the label and of w to that of time."""
    width = embedding.shape[-1]
    if self.num_labels:
      embedding += nn.Embed(
        self.num_labels,
        width,
        embedding_init=nn.initializers.normal(1.0),
        name="label_emb",
      )(label)
    if self.takes_w:
      w = jnp.zeros(label.shape) if w is None else w
      h = blocks.time_embedding(_W_SCALE * w, self.model_channels)
      h = nn.silu(blocks.dense(width, "w_embed_0", jnp.float32)(h))
      # At first w changes nothing, and a copy of a network is that network.
      embedding += blocks.dense(width, "w_embed_2", jnp.float32, zero=True)(h)
    return embedding

  def _up(self, h, skips, embedding, dropout_keys, copies):
    """Run the upward path; consume the skips from the end."""
    index = 0
    for level, mult in reversed(list(enumerate(self.channel_mult))):
      width = int(mult * self.model_channels)
      for block in range(self.num_res_blocks + 1):
        name = f"output_blocks_{index}"
        part = 1
        shared = {"copies": copies, "own": h.shape[-1]}
        h = jnp.concatenate([h, _repeat(skips.pop(), copies)], axis=-1)
        h = self.res(f"{name}_0", width, dropout_keys, **shared)(h, embedding)
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
