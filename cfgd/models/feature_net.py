"""A small classifier whose features measure the data it is trained on."""

import flax.linen as nn
import jax

# Identifies the network below in stored weights.
ARCHITECTURE = "conv3-gelu-linear"


class FeatureNet(nn.Module):
  """Convolutional classifier with a named feature layer.

  The features are taken before the nonlinearity that follows. After a ReLU, a
  third to a half of them would be 0 for every image and the others would peak
  at 0, unlike the Gaussians that Frechet distances assume. GELU has a gradient
  everywhere, so that no feature stops learning.

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
    """Map x [B, H, W, C] in [-1, 1] to float32 features and logits."""
    # With TF32 or bfloat16 products distances would depend on the device.
    exact = {"precision": jax.lax.Precision.HIGHEST}
    for level, mult in enumerate((1, 2, 4)):
      if level:
        x = nn.avg_pool(x, (2, 2), (2, 2))
      x = nn.gelu(nn.Conv(mult * self.width, (3, 3), **exact)(x))
    x = x.reshape(x.shape[0], -1)
    features = nn.Dense(self.num_features, **exact)(x)
    return features, nn.Dense(self.num_classes, **exact)(nn.gelu(features))
