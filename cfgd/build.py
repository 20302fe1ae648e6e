"""From a config to what it describes: network, optimizer, step, sampler.

The one module that reads a config to build something. What is built takes plain
arguments and is cached by them, so that the cells of a sweep compile once.
"""

import functools
import math

import jax
import jax.numpy as jnp

from cfgd import diffusion
from cfgd import methods
from cfgd.data import pipeline
from cfgd.data import sources
from cfgd.data import spec
from cfgd.models import classifier
from cfgd.models import parametrization
from cfgd.models import unet
from cfgd.runtime import target
from cfgd.sampling import draw
from cfgd.sampling import sampler as sampler_lib
from cfgd.training import losses
from cfgd.training import state as state_lib
from cfgd.training import steps


def schedule(config):
  """Return the diffusion.Schedule."""
  levels = config.diffusion
  return diffusion.Schedule(levels.logsnr_min, levels.logsnr_max)


def image_shape(config):
  """Return (H, W, C)."""
  data = config.data
  return data.image_size, data.image_size, data.channels


def network(config):
  """Return the Flax module that `config.task` trains."""
  data, model = config.data, config.model
  encoder = {
    "model_channels": model.model_channels,
    "channel_mult": tuple(model.channel_mult),
    "num_res_blocks": model.num_res_blocks,
    "attention_resolutions": tuple(model.attention_resolutions),
    "num_head_channels": model.num_head_channels,
    "new_attention_order": model.new_attention_order,
    "dropout": model.dropout,
    "dtype": model.dtype,
    "remat": model.remat,
  }
  if config.task == "classifier":
    return classifier.Classifier(num_classes=data.num_classes, **encoder)
  return unet.UNet(
    condition=model.condition,
    takes_w=config.task == "guided_student",
    num_heads=model.num_heads,
    num_labels=data.num_classes + int(model.null_row),
    out_channels=data.channels * (2 if model.learn_sigma else 1),
    **encoder,
  )


def model(config):
  """Return the parametrization.Model of the network."""
  return parametrization.Model(
    network(config), config.diffusion.timesteps, schedule(config)
  )


def teacher_config(config):
  """Return the config of a student's teacher as far as its network goes."""
  config = config.copy_and_resolve_references()
  config.task = "diffusion"
  return config


def _inputs(config):
  """Return the shapes of a forward pass of one image."""
  z = jax.ShapeDtypeStruct((1, *image_shape(config)), jnp.float32)
  time = jax.ShapeDtypeStruct((1,), jnp.float32)
  label = jax.ShapeDtypeStruct((1,), jnp.int32)
  return (z, time) if config.task == "classifier" else (z, time, label)


def param_shapes(config):
  """Return the parameters as a tree of ShapeDtypeStruct, computing none."""
  shapes = _param_shapes(network(config), _inputs(config))
  return jax.tree.map(lambda shape: shape, shapes)  # a copy: callers change it


@functools.cache
def _param_shapes(network, inputs):
  # Tracing takes a second, and the cells of a sweep share their network.
  return jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]


def initial_params(config):
  """Return fresh parameters, a function of `config.seed`."""
  inputs = [jnp.zeros(each.shape, each.dtype) for each in _inputs(config)]
  initialise = _compiled_init(network(config))
  return initialise(jax.random.key(config.seed), *inputs)["params"]


@functools.cache
def _compiled_init(network):
  return jax.jit(network.init)


def flop(lowered):
  """Return XLA's FLOP count of a lowered program for one device.

  An addition is one FLOP, as is a product. Compiled programs miss what became a
  library call, so they are asked only where the backend has no other count.
  """
  cost = lowered.cost_analysis() or lowered.compile().cost_analysis()
  return (cost[0] if isinstance(cost, list) else cost)["flops"]


def forward_flop(config):
  """Return the FLOP of one image's forward pass, the same on all devices."""
  apply = jax.jit(network(config).apply)
  with target.as_written():
    lowered = apply.lower({"params": param_shapes(config)}, *_inputs(config))
  return flop(lowered)


def branch_cost(config):
  """Return what one more label for the same z costs, in forward passes."""
  if config.task == "classifier" or config.model.condition == "all":
    return 1.0
  return _branch_cost(network(config), _inputs(config))


@functools.cache
def _branch_cost(network, inputs):
  z, time, label = inputs
  shapes = _param_shapes(network, inputs)
  apply = jax.jit(network.apply)
  with target.as_written():
    one, two = (
      flop(
        apply.lower(
          {"params": shapes}, z, time, jax.ShapeDtypeStruct((n,), label.dtype)
        )
      )
      for n in (1, 2)
    )
  return two / one - 1.0


def data_spec(config, *, training=False):
  """Return the data.spec.Spec; only training may read random crops."""
  data = config.data
  return spec.Spec(
    source=data.source,
    image_size=data.image_size,
    crop=data.crop,
    random_crop=data.random_crop if training else 0.0,
    background=data.background,
    data_dir=data.dir,
    channels=data.channels,
    num_classes=data.num_classes,
  )


def source(config, part, *, training=False):
  """Return a part of the data set, see `data.sources.load`."""
  return sources.load(data_spec(config, training=training), part)


def batches(config, source, state):
  """Iterate over the training batches from the state's step on."""
  data = config.data
  return pipeline.batches(
    source,
    seed=config.seed,
    batch_size=config.train.batch_size,
    flip=data.flip,
    first_step=int(state.step),
    num_threads=data.threads,
    prefetch=data.prefetch,
  )


def optimizer(config):
  """Return the optax transformation."""
  return state_lib.make_optimizer(**_adam(config))


def _adam(config):
  average = ("ema_decay", "ema_warmup")
  return {k: v for k, v in config.optim.items() if k not in average}


def loss(config):
  """Return the loss of `config.task`, see `training.losses`."""
  if config.task == "classifier":
    return losses.classifier_loss(model(config))
  if config.task == "guided_student":
    teacher = model(teacher_config(config))
    return losses.student_loss(model(config), teacher, config.data.num_classes)
  return losses.diffusion_loss(model(config), config.data.num_classes)


def train_step(config):
  """Return the pmapped training step, see `training.steps`."""
  return _train_step(
    loss(config),
    tuple(_adam(config).items()),
    seed=config.seed,
    ema_decay=config.optim.ema_decay,
    ema_warmup=config.optim.ema_warmup,
    microbatches=config.train.microbatches,
    devices=target.chosen(),
  )


@functools.cache
def _train_step(loss, adam, **options):
  optimizer = state_lib.make_optimizer(**dict(adam))
  return steps.make_train_step(loss, optimizer, **options)


def prefers_two_passes():
  """Return whether two forwards of B run faster here than one of 2B.

  On CPUs a batch of 2B falls out of the caches; accelerators prefer it.
  """
  return target.platform() == "cpu"


def sampler(config, guide=None, *, two_passes=None):
  """Return the draw.Draw of a config.

  Args:
    config: ConfigDict of the model.
    guide: ConfigDict of the guiding network, or None.
    two_passes: see `diffusion.classifier_free_guidance`; None is what the
      platform prefers.
  """
  sampling = config.sampling
  run = sampler_lib.make_sampler(
    model(config),
    guide and model(guide),
    sampling_choices(sampling),
    shape=image_shape(config),
    null_label=config.data.num_classes,
    two_passes=prefers_two_passes() if two_passes is None else two_passes,
    devices=target.chosen(),
  )
  return draw.Draw(
    run,
    sampling.batch_size,
    sampling.seed,
    sampling_numbers(sampling),
    logsnrs(config),
  )


def logsnrs(config):
  """Return the log-SNR [T] of each evaluation of a sampler.

  T counts evaluations: a sampler that makes two per transition has half as many
  levels.
  """
  sampling, grid = config.sampling, methods.GRIDS[config.sampling.grid]
  order = diffusion.SAMPLERS[sampling.sampler].levels(sampling.T)
  numbers = {name: sampling[name] for name in grid.numbers}
  return grid.levels(model(config), int(order[-1]) + 1, **numbers)[order]


def evaluated_logsnrs(config):
  """Return `logsnrs`, or where the sampler evaluates instead, see `Sampler`."""
  sampler, given = diffusion.SAMPLERS[config.sampling.sampler], logsnrs(config)
  if not sampler.moved:
    return given
  numbers = {name: config.sampling[name] for name in sampler.moved_by}
  return sampler.moved(given, **numbers)


def sampling_choices(sampling):
  """Return the settings of a sampler that are compiled in."""
  names = set(sampler_lib.Choices._fields) - {"rescale"}
  chosen = {name: sampling[name] for name in names}
  return sampler_lib.Choices(**chosen, rescale=sampling.rescale > 0)


def sampling_numbers(sampling):
  """Return the settings of a sampler that are traced: all its real numbers."""
  low, high = tuple(sampling.interval) or (-math.inf, math.inf)
  numbers = {k: v for k, v in sampling.items() if isinstance(v, float)}
  return numbers | {"interval_low": float(low), "interval_high": float(high)}
