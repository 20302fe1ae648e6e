"""Fashion-MNIST: 60,000 images of 10 classes, 10,000 more held out.

Two sizes, chosen by an argument after the file name:

  gpu   32x32 (28 pixels, zero-padded), 8 M parameters; 4,000 steps of 256
        are 11 PFLOP, a minute at 170 TFLOP/s. The default.
  cpu   14x14, 0.8 M parameters: 15 minutes on two CPU cores.

  python -m experiments.train --config=configs/fashion_mnist.py:cpu
      --workdir=DIR

Training prepares the set itself if TFDS has it or can download it. Offline,
Debian's package has the files:

  apt install dataset-fashion-mnist
  python -m experiments.train --config=configs/fashion_mnist.py:cpu
      --config.data.source=idx:/usr/share/datasets/fashion-mnist --workdir=DIR
"""

from configs import base
from configs import embedded


def get_config(size="gpu"):
  """Return the overrides for Fashion-MNIST.

  Args:
    size: gpu or cpu.
  """
  config = base.get_config()
  config.data.source = "tfds:fashion_mnist"
  config.data.channels = 1
  config.data.num_classes = 10
  config.optim.ema_warmup = True
  config.sampling.w = 0.3
  config.metrics.feature_network = "own:fashion"
  config.metrics.feature_net.steps = 1500
  sizes = {"gpu": _gpu, "cpu": _cpu}
  base.check_form(size, *sizes)
  sizes[size](config)
  return config


def _gpu(config):
  config.data.image_size = 32
  config.data.crop = 32
  config.model.model_channels = 64
  config.model.channel_mult = (1, 2, 2)
  config.model.num_res_blocks = 2
  config.model.attention_resolutions = (16, 8)
  config.model.num_head_channels = 32
  config.optim.warmup_steps = 200
  config.optim.ema_decay = 0.999
  config.train.batch_size = 256
  config.train.steps = 4_000
  config.train.checkpoint_every = 1_000
  config.train.sample_every = 2_000
  config.train.keep_every = 4_000
  config.sampling.T = 128
  config.sampling.num_samples = 5_000
  config.sampling.batch_size = 250
  config.sampling.chunk_size = 1_000


def _cpu(config):
  config.data.image_size = 14
  config.data.crop = 28
  embedded.as_small(config)
  config.optim.decay_steps = 4_000
  config.optim.ema_decay = 0.998
  config.train.steps = 4_000
  config.train.checkpoint_every = 500
  config.train.sample_every = 1_000
  config.sampling.T = 32
  config.sampling.num_samples = 2_000
