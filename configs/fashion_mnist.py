"""Fashion-MNIST at 32x32: 60,000 images of 10 classes, for one GPU.

The 28 pixels are surrounded by zeros; 10,000 test images are held out. Training
prepares the set by itself, in seconds, where TFDS can download or has it:

  python -m experiments.train --config=configs/fashion_mnist.py --workdir=DIR

Without a network, Debian's package has the files:

  apt install dataset-fashion-mnist
  python -m experiments.train --config=configs/fashion_mnist.py --workdir=DIR
      --config.data.source=idx:/usr/share/datasets/fashion-mnist
"""

from configs import base


def get_config():
  """Return the overrides for Fashion-MNIST."""
  config = base.get_config()
  config.data.source = "tfds:fashion_mnist"
  config.data.image_size = 32
  config.data.crop = 32
  config.data.channels = 1
  config.data.num_classes = 10
  config.model.model_channels = 64
  config.model.channel_mult = (1, 2, 2)
  config.model.num_res_blocks = 2
  config.model.attention_resolutions = (16, 8)
  config.optim.warmup_steps = 500
  config.optim.ema_decay = 0.999
  config.optim.ema_warmup = True
  config.train.batch_size = 256
  config.train.steps = 20_000
  config.train.checkpoint_every = 1_000
  config.train.sample_every = 2_000
  config.train.keep_every = 10_000
  config.sampling.T = 128
  config.sampling.w = 0.3
  config.sampling.num_samples = 10_000
  config.sampling.batch_size = 250
  config.sampling.chunk_size = 1_000
  config.sweep.title = "Fashion-MNIST 32x32"
  return config
