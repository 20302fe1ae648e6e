"""All config fields, at the values that the paper's experiments share.

Other configs override these; no other defaults exist. Set fields on the command
line by --config.sampling.w=0.3.
"""

import ml_collections


def check_form(form, *allowed):
  """Raise unless a config's argument, --config=FILE:FORM, is allowed."""
  if form not in allowed:
    choices = " or ".join(f":{each}" for each in allowed)
    raise ValueError(f"the form {form!r} must be {choices}")


def get_config():
  """Return the complete config."""
  return ml_collections.ConfigDict(
    {
      # diffusion; classifier: the noisy classifier of classifier guidance, on
      # the same data and noise levels; guided_student: a network that takes w
      # and predicts what a diffusion model predicts with guidance.
      "task": "diffusion",
      # Seed of all randomness in training: initial weights, data order, flips,
      # noise, dropout.
      "seed": 0,
      "data": {
        # embedded, imagenet64, imagenet128, tfds:NAME, folder:PATH (class
        # folders), idx:PATH (MNIST's four files).
        "source": "imagenet64",
        # Folder of prepared data sets; '': ~/tensorflow_datasets, as TFDS.
        "dir": "",
        # Pixels per side, after area downsampling.
        "image_size": 64,
        # Side of the central square crop, zero-padded where the image is
        # smaller; 0: the shorter side.
        "crop": 0,
        # Train on random crops of at least this share of the shorter side
        # (ADM's classifiers: 0.8); 0: on the central crop.
        "random_crop": 0.0,
        # Background of transparent images: white, black, #rrggbb. For ImageNet
        # an alpha channel is dropped.
        "background": "white",
        "channels": 3,
        "num_classes": 1000,
        # Random horizontal flips.
        "flip": True,
        # Host threads, each preparing a batch, and batches kept ready.
        "threads": 4,
        "prefetch": 8,
      },
      "model": {
        # Channels of the first level, and their multiples per level.
        "model_channels": 192,
        "channel_mult": (1, 2, 3, 4),
        "num_res_blocks": 3,
        # Resolutions, in pixels, with self-attention.
        "attention_resolutions": (32, 16, 8),
        # Attention heads, and channels of each; if these are not 0, they decide
        # the number of heads.
        "num_heads": 4,
        "num_head_channels": 64,
        # q, k, v split before heads; False is ADM's legacy order.
        "new_attention_order": True,
        "dropout": 0.1,
        # Embed a null label, which classifier-free guidance needs.
        "null_row": True,
        # Blocks that see the label (and a student's w): all, or the decoder's
        # and the middle's, so that guidance runs the encoder once.
        "condition": "all",
        # Predict v beside eps, as ADM: twice the output channels.
        "learn_sigma": False,
        # Recompute activations in the backward pass: less memory, slower.
        "remat": False,
        # Precision of matmuls and convolutions: bfloat16, or float32 (never
        # TF32 or bfloat16 passes).
        "dtype": "bfloat16",
      },
      "diffusion": {
        # Range of the log-SNR.
        "logsnr_min": -20.0,
        "logsnr_max": 20.0,
        # Conditioning of the network: uniform (1000 u), or for ADM's weights
        # the timestep of its own schedule: adm_cosine (64x64) or adm_linear
        # (128x128).
        "timesteps": "uniform",
        # Probability of training an example without its label.
        "p_uncond": 0.1,
      },
      # Only for task guided_student.
      "distill": {
        # Workdir of the teacher, a diffusion model of the same network, and its
        # checkpoint; -1: the newest when training starts.
        "teacher": "",
        "teacher_step": -1,
        # What the teacher is, filled in by training; '': any.
        "teacher_model": "",
        # Each example draws its w between these.
        "w_low": 0.0,
        "w_high": 4.0,
      },
      "optim": {
        # Adam, or AdamW where weight_decay is not 0.
        "learning_rate": 3e-4,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
        # Clip gradients to this global norm; 0: no clipping, as in the paper.
        "clip_norm": 0.0,
        # Linear warm-up, then constant, or decay to 0 at decay_steps: cosine or
        # linear.
        "warmup_steps": 0,
        "decay_steps": 0,
        "decay": "cosine",
        # Moving average of the parameters; warm-up: min(decay, (1+i)/(10+i)).
        "ema_decay": 0.9999,
        "ema_warmup": False,
      },
      "train": {
        # Images per step, over all devices of all hosts.
        "batch_size": 2048,
        # Gradient accumulation: equal parts of a device's batch, one after the
        # other; the same step in less memory.
        "microbatches": 1,
        "steps": 400_000,
        # Fine-tune the averaged weights of another workdir; '': from scratch. A
        # null row that they lack starts at zero.
        "init_from": "",
        "log_every": 100,
        "checkpoint_every": 5_000,
        # Steps between sample grids (TensorBoard and PNG), or a classifier's
        # accuracy on held-out images; 0: never.
        "sample_every": 25_000,
        # Keep this many of the newest checkpoints, and all at multiples of
        # keep_every.
        "keep": 3,
        "keep_every": 50_000,
        # Keep this many of the oldest, which autoguidance can use.
        "keep_first": 0,
        # Print all threads' stacks and exit if no step finishes in this time,
        # or in ten times this while compiling or saving; 0: never.
        "watchdog_seconds": 0.0,
        # Seconds without renewal before another job may take the lease.
        "lease_seconds": 120.0,
        # Held-out images for a classifier's accuracy.
        "heldout_images": 10_000,
        # Steps with a non-finite loss or gradient are skipped; stop after more
        # than this many in a row.
        "max_skipped": 20,
      },
      "sampling": {
        # ancestral: Algorithm 2. ancestral_mean_shift: with ADM's first form of
        # classifier guidance, which shifts the mean. ddim. dpmpp_2m, its second
        # order; sde_dpmpp_2m, with noise. heun: EDM's. See docs/sampling.md.
        "sampler": "ancestral",
        # Network evaluations per branch.
        "T": 256,
        # Log-SNRs of the evaluations: uniform_u, the paper's; logsnr, evenly
        # spaced; edm, with EDM's rho; adm, respaced timesteps of ADM's
        # schedule.
        "grid": "uniform_u",
        # Ends of logsnr and edm.
        "logsnr_low": -7.0,
        "logsnr_high": 9.0,
        "rho": 7.0,
        # heun's S_churn, and the log-SNRs that it acts on: -2 log S_max and
        # -2 log S_min.
        "churn": 0.0,
        "churn_low": -7.8,
        "churn_high": 6.0,
        # cfg: classifier-free. classifier: by the gradient of a noisy
        # classifier. classifier_null: the same on the unconditional model, with
        # w + 1. cfg+classifier: both. marginal: cfg with the mean over the
        # classes as unconditional model (at most 100 classes). auto: away from
        # a weaker model. distilled: of a guided student. none. See
        # docs/guidance.md.
        "guidance": "cfg",
        # The paper's guidance strength; the other convention is s = 1 + w.
        "w": 0.1,
        # Over the noise levels: constant, or from 0 at u = 1 to 2 w at u = 0,
        # linear or cosine in u.
        "w_schedule": "constant",
        # Log-SNRs (low, high) that are guided; empty: all.
        "interval": (),
        # Rescaling's phi: 0 keeps the guided eps, 1 gives it the contrast of
        # the conditional one.
        "rescale": 0.0,
        # Workdir of the guiding network, a noisy classifier or auto's weaker
        # model ('': this run), and its checkpoint; -1: the newest.
        "guide_dir": "",
        "guide_step": -1,
        # Strength of the classifier in cfg+classifier; it follows w_schedule
        # and interval as w does.
        "classifier_w": 0.0,
        # The paper's low temperatures: factors of the score and of the noise.
        "score_scale": 1.0,
        "noise_scale": 1.0,
        # Interpolation of the reverse variance, 0 to 1; a network with learned
        # sigma uses the v that it predicts (own) or this constant (config).
        "v": 0.3,
        "v_from": "own",
        # Threshold of the predicted x: clip to [-1, 1], dynamic (by quantile),
        # or none.
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
        # inception (FID, IS), or own:NAME: a small classifier trained on the
        # data itself (fd_NAME, is_NAME).
        "feature_network": "inception",
        # Resizing and logits of Inception: adm (TensorFlow's graph, as in the
        # paper and ADM) or pytorch_fid.
        "protocol": "adm",
        # Its weights, a .pth or the .npz that experiments.import_checkpoint
        # makes of it, perhaps in a bucket; '': downloaded to cache_dir once.
        "inception": "",
        # Reference statistics or images; '': data.source.
        "reference": "",
        # Reference images whose features are kept for precision, recall and
        # KID.
        "reference_features": 10_000,
        # Minimum samples for FID; with fewer the covariance is singular.
        "min_images": 2_048,
        # Images whose features are saved together, and images per device and
        # call of Inception.
        "chunk_size": 1_024,
        "inception_batch_size": 32,
        # Cache of weights and reference statistics.
        "cache_dir": "~/.cache/cfgd",
        # Splits of the Inception score; 0: the protocol's. adm: one per 5,000
        # samples; pytorch_fid and own networks: 10, or 1 below 10,000 samples.
        "num_splits": 0,
        # Neighbours of precision and recall.
        "neighbours": 3,
        # Images per device and call of an own network.
        "batch_size": 250,
        # Folder of own networks; '': feature_net/ in the workdir.
        "feature_dir": "",
        # How it is trained if it does not exist.
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
        # Products of p_uncond, T, w and any other field of sampling; a cell in
        # several of them runs once.
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
        # Seeds of training and sampling to run every cell with; (): the
        # config's own.
        "seeds": (),
        # Fields that make this config that of a noisy classifier, trained for
        # the cells that need one; {}: such cells set guide_dir.
        "classifier": {},
        # Fields that make this config that of a guided student, trained from
        # each model for the cells with guidance='distilled'; {}: none.
        "student": {},
        # Tests of the paper's claims over the seeds. confidence: 1 minus the
        # error rate of the primary claims together, and of each secondary one.
        # alike: two curves are alike up to this ratio. small_w: guidance is
        # small up to this w. copied: up to this estimated share of copies
        # nothing counts as copied, if training saw each image at least
        # copied_epochs times.
        "claims": {
          "confidence": 0.95,
          "alike": 1.15,
          "small_w": 1.0,
          "copied": 0.1,
          "copied_epochs": 10.0,
        },
        # Pictures of `experiments.figures`, by name: side x side images of each
        # set of classes in "labels" (empty: all in turn) at each w.
        "figures": {},
        # Metrics that the report plots against each other.
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
