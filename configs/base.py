"""Every field there is, at the values that the paper's experiments share.

Other configs override; nothing below reads a field that is not here. Fields can
be set on the command line: --config.sampling.w=0.3.
"""

import ml_collections


def get_config():
  """Return the complete config."""
  return ml_collections.ConfigDict(
    {
      # Root of all randomness in training: order, flips, noise, labels dropped.
      "seed": 0,
      "data": {
        # Data set by name, see cfgd/data/sources.py.
        "source": "imagenet64",
        # Pixels per side after area downsampling.
        "image_size": 64,
        # Side of the central square that is kept first; 0: the shorter side.
        "crop": 0,
        "channels": 3,
        "num_classes": 1000,
        # Mirror left to right at random.
        "flip": True,
        # Host threads that read ahead, and batches kept ready.
        "threads": 8,
        "prefetch": 4,
      },
      "model": {
        # Channels of the first level, and multiples of it per level.
        "model_channels": 192,
        "channel_mult": (1, 2, 3, 4),
        "num_res_blocks": 3,
        # Heights in pixels of the levels with self-attention.
        "attention_resolutions": (32, 16, 8),
        # Heads by number, or by width where num_head_channels is not 0.
        "num_heads": 4,
        "num_head_channels": 64,
        # q, k, v split before heads; False is ADM's legacy order.
        "new_attention_order": True,
        "dropout": 0.1,
        # A label row for "no class"; without it there is no guidance.
        "null_row": True,
        # Twice the channels: ADM's prediction of v beside eps.
        "learn_sigma": False,
        # Compute activations again in the backward pass: less memory, slower.
        "remat": False,
        # Of matmuls and convolutions: float32 or bfloat16.
        "dtype": "bfloat16",
      },
      "diffusion": {
        # Range of the log-SNR.
        "logsnr_min": -20.0,
        "logsnr_max": 20.0,
        # What the network is told of the log-SNR: uniform (1000 u), or the
        # timestep of ADM's own schedule, for its weights: adm_cosine (its
        # 64x64 models) or adm_linear (128x128).
        "timesteps": "uniform",
        # Probability of training an example without its label.
        "p_uncond": 0.1,
      },
      "optim": {
        # Adam.
        "learning_rate": 3e-4,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        # Linear warm-up, then constant, or a cosine to 0 at decay_steps.
        "warmup_steps": 0,
        "decay_steps": 0,
        # Moving average of the parameters; warm-up: min(decay, (1+i)/(10+i)).
        "ema_decay": 0.9999,
        "ema_warmup": False,
      },
      "train": {
        # Over all devices of all hosts.
        "batch_size": 2048,
        "steps": 400_000,
        # Start from the averaged weights of another workdir; '': from scratch.
        # Where they lack the null row, it starts at zero.
        "init_from": "",
        "log_every": 100,
        "checkpoint_every": 5_000,
        # A grid of samples in TensorBoard and as PNG; 0: never.
        "sample_every": 25_000,
        # Newest checkpoints that stay, and steps whose multiples stay for good.
        "keep": 3,
        "keep_every": 50_000,
        # Stop after this many steps with a loss or gradient that is not finite.
        "max_skipped": 20,
      },
      "sampling": {
        # ancestral or ddim.
        "sampler": "ancestral",
        # Network evaluations.
        "T": 256,
        # The paper's guidance strength; the other convention is s = 1 + w.
        "w": 0.1,
        # Interpolation of the reverse variance, 0 to 1.
        "v": 0.3,
        # Clip predicted x to [-1, 1].
        "clip": True,
        # Image i depends on (seed, i) alone.
        "seed": 0,
        "num_samples": 50_000,
        # Image i gets labels[i mod len]; empty: all classes in turn.
        "labels": (),
        # Images per device and call, and images per file of the chunk store.
        "batch_size": 128,
        "chunk_size": 2_048,
        # ema or raw.
        "weights": "ema",
        # -1: the newest.
        "checkpoint_step": -1,
      },
      "metrics": {
        # By what samples are scored: inception (FID, IS), or embedded (a small
        # classifier that is trained on the embedded data).
        "feature_network": "inception",
        # How images reach Inception, and its logits: adm (TensorFlow's graph,
        # as the paper and ADM) or pytorch_fid.
        "protocol": "adm",
        # Its weights, a .pth; '': fetched into cache_dir once.
        "inception": "",
        # Statistics or images to compare with; '': data.source.
        "reference": "",
        # Images of a reference whose features are kept, for precision, recall
        # and KID.
        "reference_features": 10_000,
        # Fewer images have no FID: 2048 features need as many.
        "min_images": 2_048,
        # Images per part that is kept when a run is killed, and per device and
        # call.
        "chunk_size": 1_024,
        "inception_batch_size": 32,
        # Of weights, and of statistics that are made where they are missing.
        "cache_dir": "~/.cache/cfgd",
        # Splits of the Inception-style score.
        "num_splits": 10,
        # Neighbours of precision and recall.
        "neighbours": 3,
        # Images per device and call of the embedded data's network.
        "batch_size": 250,
        # Where that network is; '': in the workdir.
        "feature_dir": "",
        # How it is trained where it is missing.
        "feature_net": {
          "width": 32,
          "num_features": 64,
          "learning_rate": 3e-3,
          "batch_size": 128,
          "steps": 600,
        },
      },
      "sweep": {
        # Products p_uncond x T x w; a cell in several of them is run once.
        "grids": {
          "main": {
            "p_uncond": (0.1,),
            "T": (256,),
            "w": (
              *(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
              *(1.0, 2.0, 3.0, 4.0),
            ),
          },
        },
        # Columns of the report that are drawn against each other.
        "distance": "fid",
        "score": "is",
        "title": "Classifier-free guidance",
        # Paragraphs under the title.
        "notes": (),
      },
    }
  )
