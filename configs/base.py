"""Every field there is, at the values that the paper's experiments share.

Other configs override; nothing below reads a field that is not here. Fields can
be set on the command line: --config.sampling.w=0.3.
"""

import ml_collections


def get_config():
  """Return the complete config."""
  return ml_collections.ConfigDict(
    {
      # What is trained: diffusion, or the noisy classifier of classifier
      # guidance, with the same data, noise levels, loop and checkpoints.
      "task": "diffusion",
      # Root of all randomness in training: order, flips, noise, labels dropped.
      "seed": 0,
      "data": {
        # Data set by name: embedded, imagenet64, imagenet128, tfds:NAME,
        # folder:PATH (class folders), idx:PATH (MNIST's four files).
        "source": "imagenet64",
        # Where prepared sets are; '': TFDS's own, ~/tensorflow_datasets.
        "dir": "",
        # Pixels per side after area downsampling.
        "image_size": 64,
        # Side of the central square that is kept first, filled up with zeros
        # where the image is smaller; 0: the shorter side.
        "crop": 0,
        # Train on random crops with at least this share of the shorter side
        # (ADM's classifiers: 0.8); 0: on the central square.
        "random_crop": 0.0,
        # Colour behind transparent images: white, black, #rrggbb. ImageNet has
        # none: there an alpha channel is dropped.
        "background": "white",
        "channels": 3,
        "num_classes": 1000,
        # Mirror left to right at random.
        "flip": True,
        # Host threads that read ahead, a batch each, and batches kept ready.
        "threads": 4,
        "prefetch": 8,
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
        # Of matmuls and convolutions: bfloat16, or float32, which is then
        # float32 on every device: no TF32, no bfloat16 passes.
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
        # Adam, with decoupled weight decay (AdamW) where that is not 0.
        "learning_rate": 3e-4,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
        # Scale a gradient of larger norm down to this norm; 0: never, as in the
        # paper.
        "clip_norm": 0.0,
        # Linear warm-up, then constant, or down to 0 at decay_steps as a cosine
        # or in a line.
        "warmup_steps": 0,
        "decay_steps": 0,
        "decay": "cosine",
        # Moving average of the parameters; warm-up: min(decay, (1+i)/(10+i)).
        "ema_decay": 0.9999,
        "ema_warmup": False,
      },
      "train": {
        # Over all devices of all hosts.
        "batch_size": 2048,
        # Equal parts of a device's share of the batch that are computed one
        # after the other and added up: the same step in less memory.
        "microbatches": 1,
        "steps": 400_000,
        # Start from the averaged weights of another workdir; '': from scratch.
        # Where they lack the null row, it starts at zero.
        "init_from": "",
        "log_every": 100,
        "checkpoint_every": 5_000,
        # A grid of samples in TensorBoard and as PNG, or a classifier's
        # accuracy on held-out images; 0: never.
        "sample_every": 25_000,
        # Newest checkpoints that stay, and steps whose multiples stay for good.
        "keep": 3,
        "keep_every": 50_000,
        # First checkpoints that stay for good; autoguidance can use them.
        "keep_first": 0,
        # End, with the stacks of all threads, when no step was finished for so
        # long; ten times that for compiling and saving. 0: never.
        "watchdog_seconds": 0.0,
        # A job that was silent for so long has lost what it held of a workdir
        # or a sweep to others.
        "lease_seconds": 120.0,
        # Held-out images that a classifier is tried on.
        "heldout_images": 10_000,
        # Steps with a loss or gradient that is not finite are skipped; stop
        # after more than this many in a row.
        "max_skipped": 20,
      },
      "sampling": {
        # ancestral: Algorithm 2. ancestral_mean_shift: with ADM's first form of
        # classifier guidance, which shifts the mean. ddim.
        "sampler": "ancestral",
        # Length of the log-SNR grid: network evaluations per branch.
        "T": 256,
        # cfg: classifier-free. classifier: by the gradient of a noisy
        # classifier. classifier_null: the same on the unconditional model, with
        # w + 1. cfg+classifier: both. marginal: cfg with the mean over the
        # classes as unconditional model (at most 100 classes). auto: away from
        # a weaker model. none. See cfgd/methods.py.
        "guidance": "cfg",
        # The paper's guidance strength; the other convention is s = 1 + w.
        "w": 0.1,
        # Over the noise levels: constant, or linear or cosine from 0 to 2 w.
        "w_schedule": "constant",
        # Log-SNRs (low, high) that are guided; empty: all.
        "interval": (),
        # Share of the guided eps that gets the contrast of the conditional one.
        "rescale": 0.0,
        # Workdir of the guiding network, a noisy classifier or auto's weaker
        # model ('': this run), and its checkpoint; -1: the newest.
        "guide_dir": "",
        "guide_step": -1,
        # Strength of the classifier in cfg+classifier; it follows w_schedule
        # and interval as w does.
        "classifier_w": 0.0,
        # The introduction's low temperatures: factors of score and noise.
        "score_scale": 1.0,
        "noise_scale": 1.0,
        # Interpolation of the reverse variance, 0 to 1; a network with learned
        # sigma uses the v that it predicts (own) or this constant (config).
        "v": 0.3,
        "v_from": "own",
        # Of predicted x: clip to [-1, 1], dynamic (by a quantile), or none.
        "threshold": "clip",
        "quantile": 0.995,
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
        # By what samples are scored: inception (FID, IS), or own:NAME, a small
        # classifier that is trained on the data itself (fd_NAME, is_NAME).
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
        # Splits of the Inception score; 0: by the protocol. That is one per
        # 5,000 samples for adm, and for pytorch_fid and own networks 10, or 1
        # below 10,000 samples.
        "num_splits": 0,
        # Neighbours of precision and recall.
        "neighbours": 3,
        # Images per device and call of the own network.
        "batch_size": 250,
        # Where own networks are, each in a folder named by its settings; '':
        # feature_net/ in the workdir.
        "feature_dir": "",
        # How it is trained where it is missing.
        "feature_net": {
          "seed": 0,
          "width": 32,
          "num_features": 64,
          "learning_rate": 3e-3,
          "batch_size": 128,
          "steps": 600,
        },
      },
      "sweep": {
        # Products p_uncond x T x w, and any other field of sampling by its
        # name; a cell in several of them is run once.
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
        # Seeds of training and sampling: every cell is run with each of them.
        # (): once, with the fields' own.
        "seeds": (),
        # Fields that turn this config into that of a noisy classifier, which
        # is trained for cells that need one; {}: they name second_dir.
        "classifier": {},
        # Test the paper's claims on the cells. confidence: 1 minus the error
        # rate of the primary claims together, and of each secondary one. Up to
        # this ratio two curves are alike; up to this w guidance is small; up to
        # this share of samples, estimated, nothing is said to be copied, if
        # training saw each image at least copied_epochs times.
        "claims": {
          "confidence": 0.95,
          "alike": 1.15,
          "small_w": 1.0,
          "copied": 0.1,
          "copied_epochs": 10.0,
        },
        # Pictures of `experiments.figures`, by name: "labels", sets of classes
        # (empty: all in turn), at each of "w", "side" x "side" images of each.
        "figures": {},
        # Columns of the report that are drawn against each other.
        "distance": "fid",
        "score": "is",
        # The paper's table to show beside the results: table1_imagenet64 or
        # table2_imagenet128; '': none.
        "paper": "",
        "title": "Classifier-free guidance",
        # Paragraphs under the title.
        "notes": (),
      },
    }
  )
