"""Our network beside guided-diffusion's PyTorch code, in turns, in one process.

  git clone https://github.com/openai/guided-diffusion DIR
  python -m benchmarks.peer --peer=DIR --what train_step --batch=16
      --set model.dtype=float32 --set data.image_size=32 ...

The same sizes, batch, dtype and number of threads on both sides. The training
step is forward, backward, Adam and moving average; sampling is both branches
of guidance at T noise levels; forward is one evaluation. The turns alternate,
and what counts is the ratio: images per second of ours over theirs.

That needs a machine without other work: OpenMP's threads, PyTorch's on a CPU,
wait for each other in a loop, and where two of them share a core the wait is
most of the time. OMP_WAIT_POLICY=passive in the environment has them sleep. The
ratio of the seconds of CPU time, which is printed as well, then says something
on a busy machine, too; where the two ratios differ much, believe neither.
"""

import argparse
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from benchmarks import sample
from benchmarks import train_step
from cfgd import config as config_lib
from cfgd import networks


def make_theirs(config, peer):
  """Return guided-diffusion's U-Net of a config, without dropout keys of ours.

  Args:
    config: ConfigDict of a diffusion model.
    peer: folder of a checkout.
  """
  sys.path.insert(0, os.path.abspath(peer))
  from guided_diffusion import unet

  data, model = config.data, config.model
  return unet.UNetModel(
    image_size=data.image_size,
    in_channels=data.channels,
    model_channels=model.model_channels,
    out_channels=data.channels,
    num_res_blocks=model.num_res_blocks,
    attention_resolutions=tuple(
      data.image_size // height for height in model.attention_resolutions
    ),
    dropout=model.dropout,
    channel_mult=tuple(model.channel_mult),
    num_classes=data.num_classes + 1,
    num_heads=model.num_heads,
    num_head_channels=model.num_head_channels or -1,
    use_scale_shift_norm=True,
    resblock_updown=True,
    use_new_attention_order=model.new_attention_order,
  )


class Theirs:
  """guided-diffusion's network at work.

  Attributes:
    steps: what the calls are, by name.
  """

  def __init__(self, config, options, device):
    """Build the network; see `_parse` for the options."""
    import torch

    self._torch, self._device = torch, device
    torch.manual_seed(0)
    self._dtype = getattr(torch, config.model.dtype)
    self._net = make_theirs(config, options.peer).to(device)
    self._average = [p.detach().clone() for p in self._net.parameters()]
    self._adam = torch.optim.AdamW(
      self._net.parameters(), lr=1e-4, weight_decay=0.0, fused=False
    )
    self._batch, self._num_steps = options.batch, options.T
    self._shape = (options.batch, config.data.channels) + (
      config.data.image_size,
    ) * 2
    self._null, self._w = config.data.num_classes, config.sampling.w
    self._forward = torch.compile(self._net) if options.compile else self._net

  def _call(self, z, time, label):
    torch = self._torch
    if self._dtype == torch.float32:
      return self._forward(z, time, label)
    with torch.autocast(self._device, self._dtype):
      return self._forward(z, time, label).float()

  def _inputs(self):
    torch, device = self._torch, self._device
    z = torch.randn(self._shape, device=device)
    time = torch.full((self._batch,), 500.0, device=device)
    return z, time, torch.arange(self._batch, device=device) % self._null

  def _wait(self):
    if self._device == "cuda":
      self._torch.cuda.synchronize()

  def forward(self):
    """Evaluate the network once."""
    with self._torch.no_grad():
      self._call(*self._inputs())
    self._wait()

  def train_step(self):
    """Take one step of Adam and of the moving average."""
    z, time, label = self._inputs()
    eps = self._torch.randn_like(z)
    self._adam.zero_grad(set_to_none=True)
    loss = ((self._call(z, time, label) - eps) ** 2).mean()
    loss.backward()
    self._adam.step()
    with self._torch.no_grad():
      parameters = list(self._net.parameters())
      self._torch._foreach_lerp_(self._average, parameters, 1e-4)
    self._wait()

  def sample(self):
    """Take T guided steps of a DDPM-like update."""
    torch = self._torch
    z, time, label = self._inputs()
    both = torch.cat([label, torch.full_like(label, self._null)])
    with torch.no_grad():
      for _ in range(self._num_steps):
        out = self._call(torch.cat([z, z]), torch.cat([time, time]), both)
        eps, eps_null = out.chunk(2)
        eps = (1 + self._w) * eps - self._w * eps_null
        x = (1.2 * z - 0.3 * eps).clamp(-1, 1)
        z = 0.7 * z + 0.2 * x + 0.1 * torch.randn_like(z)
    self._wait()


def make_ours(config, options):
  """Return {name: call} of our side."""
  state = train_step.make_state(config)
  batch = train_step.make_batch(config, options.batch)
  traced = {"p_uncond": jnp.float32(config.diffusion.p_uncond)}
  step = train_step.make_step(config)
  two_passes = sample.sampler_lib.prefers_two_passes()

  def train():
    nonlocal state
    state, metrics = step(state, batch, traced)
    jax.block_until_ready(metrics)

  def forward():
    jax.block_until_ready(evaluate(params, z, time, label))

  def draw():
    jax.block_until_ready(run(*arguments))

  if options.what == "train_step":
    return train
  if options.what == "sample":
    run, arguments = sample.make_call(
      config, options.batch, options.T, two_passes
    )
    return draw
  params = networks.initial_params(config)
  evaluate = jax.jit(
    lambda params, *inputs: networks.build(config).apply(
      {"params": params}, *inputs
    )
  )
  shape = (options.batch, *config_lib.image_shape(config))
  z = np.random.default_rng(0).standard_normal(shape, np.float32)
  time = np.full(options.batch, 500.0, np.float32)
  label = np.arange(options.batch, dtype=np.int32) % config.data.num_classes
  return forward


def _parse(argv):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  machine.add_config_arguments(parser, "imagenet64")
  parser.add_argument("--peer", required=True, help="checkout of the peer")
  parser.add_argument(
    "--what", choices=("train_step", "sample", "forward"), required=True
  )
  parser.add_argument("--batch", type=int, required=True)
  parser.add_argument("--T", type=int, default=2)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument(
    "--compile", action="store_true", help="torch.compile the peer"
  )
  parser.add_argument("--json", help="file to write")
  return parser.parse_args(argv)


def _in_turns(calls, repeats):
  """Return (seconds, seconds of CPU time) of each call, by name."""
  seconds = {name: [] for name in calls}
  cpu_seconds = {name: [] for name in calls}
  for call in calls.values():
    machine.timed(call, 1)
  for _ in range(repeats):
    for name, call in calls.items():
      start = time.process_time()
      seconds[name] += machine.timed(call, 1)
      cpu_seconds[name].append(time.process_time() - start)
  return seconds, cpu_seconds


def _ratio(seconds):
  """Return the spread of theirs over ours."""
  pairs = zip(seconds["ours"], seconds["theirs"], strict=True)
  return machine.spread([theirs / ours for ours, theirs in pairs])


def main(argv):
  """Measure in turns, print the ratio, write JSON."""
  import torch

  options = _parse(argv)
  config = machine.load_config(options)
  device = "cuda" if jax.default_backend() == "gpu" else "cpu"
  if device == "cpu":
    torch.set_num_threads(len(os.sched_getaffinity(0)))
  theirs = getattr(Theirs(config, options, device), options.what)
  ours = make_ours(config, options)
  seconds, cpu_seconds = _in_turns(
    {"ours": ours, "theirs": theirs}, options.repeats
  )
  report = machine.environment() | {
    "torch": torch.__version__,
    "torch_compiled": options.compile,
    "what": options.what,
    "batch_size": options.batch,
    "dtype": config.model.dtype,
    "seconds": {name: machine.spread(s) for name, s in seconds.items()},
    "ratio": _ratio(seconds),
    "cpu_seconds": {k: machine.spread(s) for k, s in cpu_seconds.items()},
    "cpu_ratio": _ratio(cpu_seconds),
    "load": os.getloadavg()[0],
    "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
  }
  print(
    f"{options.what}, {report['dtype']}, batch {options.batch}, "
    f"{report['device']}, {report['cores']} cores, torch {torch.__version__} "
    f"{'compiled' if options.compile else 'eager'}: ours "
    f"{report['seconds']['ours']['median']:.3g} s, theirs "
    f"{report['seconds']['theirs']['median']:.3g} s; ours is "
    f"{report['ratio']['median']:.2f} times as fast "
    f"({report['ratio']['min']:.2f} to {report['ratio']['max']:.2f}); by CPU "
    f"time {report['cpu_ratio']['median']:.2f}, load {report['load']:.1f}"
  )
  machine.write_json(options.json, report)


if __name__ == "__main__":
  main(sys.argv[1:])
