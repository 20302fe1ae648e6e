"""The embedded sweep at the smallest size that has all its parts."""

from configs import sweep_embedded

TINY = {
  "data.image_size": 4,
  "model.channel_mult": (1,),
  "model.attention_resolutions": (),  # the middle block's remains
  # One value for all tests, so that they share compiled training steps.
  "model.dropout": 0.2,
  "optim.decay_steps": 0,
  "optim.warmup_steps": 1,
  "train.batch_size": 8,
  "train.steps": 2,
  "train.log_every": 1,
  "train.checkpoint_every": 1,
  "train.sample_every": 0,
  "sampling.T": 3,
  "sampling.num_samples": 22,
  "sampling.batch_size": 2,
  "sampling.chunk_size": 12,
  "metrics.num_splits": 2,
  "metrics.feature_net.width": 4,
  "metrics.feature_net.num_features": 8,
  "metrics.feature_net.steps": 200,
}


def make_config(overrides=TINY):
  """Return the embedded sweep's config with {field: value}."""
  config = sweep_embedded.get_config()
  config.update_from_flattened_dict(overrides)
  return config


def flags(overrides):
  """Return {field: value} as arguments of an entry point."""
  return [f"--config.{field}={value}" for field, value in overrides.items()]
