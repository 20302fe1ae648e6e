"""A small classifier whose features measure the data it is trained on."""

import flax.linen as nn
import jax

# Exact to float32, so that distances do not depend on the device: left to
# themselves GPUs round factors to TF32 and TPUs to bfloat16.
_PRECISION = jax.lax.Precision.HIGHEST


class FeatureNet(nn.Module):
  """Convolutional classifier with a named feature layer.

  Attributes:
    width: channels of the first convolution.
    num_features: size of the layer that distances are computed on.
    num_classes: size of the output.
  """

  width: int
  num_features: int
  num_classes: int

  @nn.compact
  def __call__(self, x):
    """Return features and logits.

    Args:
      x: [B, H, W, C] in [-1, 1].

    Returns:
      (features [B, num_features] at least 0, logits [B, num_classes]).
    """
    for level, mult in enumerate((1, 2, 4)):
      if level:
        x = nn.avg_pool(x, (2, 2), (2, 2))
      x = nn.relu(nn.Conv(mult * self.width, (3, 3), precision=_PRECISION)(x))
    x = x.reshape(x.shape[0], -1)
    features = nn.relu(nn.Dense(self.num_features, precision=_PRECISION)(x))
    return features, nn.Dense(self.num_classes, precision=_PRECISION)(features)
