"""Time our network beside guided-diffusion's in PyTorch, in turns.

  git clone https://github.com/openai/guided-diffusion DIR
  python -m benchmarks.peer --peer=DIR --what=train_step --batch=16
      --config.model.dtype=float32 --config.data.image_size=32 ...

Both sides have the same sizes, batch, dtype and number of threads, in one
process. The training step is forward, backward, Adam and moving average;
sampling is both branches of guidance at T noise levels; forward is one
evaluation. The result is the ratio of images per second, ours over theirs.

The machine must be otherwise idle: PyTorch's OpenMP threads spin while they
wait for each other, and where two of them share a core, most of the time is
spinning. OMP_WAIT_POLICY=passive makes them sleep. The ratio of CPU seconds,
also printed, means something on a busy machine too; if the two ratios differ
much, trust neither.
"""

import os
import sys

from absl import flags
import jax

from benchmarks import machine
from benchmarks import programs
from cfgd import build
from experiments import launcher

_CONFIG = launcher.define_config("imagenet64.py")
_PEER = flags.DEFINE_string("peer", None, "Checkout of guided-diffusion.")
_WHAT = flags.DEFINE_enum(
  "what", None, ["train_step", "sample", "forward"], "What to time."
)
_BATCH = flags.DEFINE_integer("batch", None, "Images per call.")
_STEPS = flags.DEFINE_integer("T", 2, "Noise levels of sampling.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Turns.")
_COMPILE = flags.DEFINE_boolean("compile", False, "torch.compile the peer.")
flags.mark_flags_as_required(["peer", "what", "batch"])


def make_theirs(config, peer):
  """Return guided-diffusion's U-Net of a config.

  Args:
    config: ConfigDict of a diffusion model.
    peer: folder of a checkout.
  """
  sys.path.insert(0, os.path.abspath(peer))
  from guided_diffusion import unet

  # Their attention is recomputed in the backward pass, where autocast is over:
  # that fails in bfloat16, and cuts compiled programs into pieces. To keep what
  # it needs is in their favour.
  unet.checkpoint = lambda function, inputs, params, flag: function(*inputs)
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
  """guided-diffusion's network at work."""

  def __init__(self, config, device):
    """Build the network that the flags describe."""
    import torch

    self._torch, self._device = torch, device
    torch.manual_seed(0)
    self._dtype = getattr(torch, config.model.dtype)
    self._net = make_theirs(config, _PEER.value).to(device)
    self._average = [p.detach().clone() for p in self._net.parameters()]
    self._adam = torch.optim.AdamW(
      self._net.parameters(), lr=1e-4, weight_decay=0.0, fused=False
    )
    side = config.data.image_size
    self._shape = (_BATCH.value, config.data.channels, side, side)
    self._null, self._w = config.data.num_classes, config.sampling.w
    self._forward = torch.compile(self._net) if _COMPILE.value else self._net

  def _call(self, z, time, label):
    torch = self._torch
    if self._dtype == torch.float32:
      return self._forward(z, time, label)
    with torch.autocast(self._device, self._dtype):
      return self._forward(z, time, label).float()

  def _inputs(self):
    torch, device = self._torch, self._device
    z = torch.randn(self._shape, device=device)
    time = torch.full(self._shape[:1], 500.0, device=device)
    return z, time, torch.arange(len(z), device=device) % self._null

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
      for _ in range(_STEPS.value):
        out = self._call(torch.cat([z, z]), torch.cat([time, time]), both)
        eps, eps_null = out.chunk(2)
        eps = (1 + self._w) * eps - self._w * eps_null
        x = (1.2 * z - 0.3 * eps).clamp(-1, 1)
        z = 0.7 * z + 0.2 * x + 0.1 * torch.randn_like(z)
    self._wait()


def make_ours(config):
  """Return our side of --what as a function without arguments."""
  if _WHAT.value == "train_step":
    return _make_our_step(config)
  if _WHAT.value == "sample":
    run, arguments = programs.sampler(config, _BATCH.value, _STEPS.value)
  else:
    run, arguments = programs.forward(config, _BATCH.value)
  return lambda: run(*arguments)


def _make_our_step(config):
  state, batch, traced = programs.train_inputs(config, _BATCH.value)
  step = build.train_step(config)

  def train():
    nonlocal state
    state, metrics = step(state, batch, traced)
    return metrics

  return train


def _ratio(seconds):
  """Return the spread of theirs over ours."""
  pairs = zip(seconds["ours"], seconds["theirs"], strict=True)
  return machine.spread([theirs / ours for ours, theirs in pairs])


def main():
  """Measure in turns, print the ratio, write JSON."""
  import torch

  config = _CONFIG.value
  device = "cuda" if jax.default_backend() == "gpu" else "cpu"
  if device == "cpu":
    torch.set_num_threads(machine.cores())
  theirs = getattr(Theirs(config, device), _WHAT.value)
  timings = machine.in_turns(
    {"ours": make_ours(config), "theirs": theirs}, _REPEATS.value
  )
  seconds = {name: timing.seconds for name, timing in timings.items()}
  cpu = {name: timing.cpu_seconds for name, timing in timings.items()}
  report = machine.environment() | {
    "program": "peer",
    "config": machine.config_name(),
    "torch": torch.__version__,
    "torch_compiled": _COMPILE.value,
    "what": _WHAT.value,
    "batch_size": _BATCH.value,
    "T": _STEPS.value if _WHAT.value == "sample" else None,
    "dtype": config.model.dtype,
    "seconds": {name: machine.spread(s) for name, s in seconds.items()},
    "ratio": _ratio(seconds),
    "cpu_seconds": {name: machine.spread(s) for name, s in cpu.items()},
    "cpu_ratio": _ratio(cpu),
    "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
  }
  print(
    f"{_WHAT.value}, {report['dtype']}, batch {_BATCH.value}, "
    f"{report['device']}, {report['cores']} cores, torch {torch.__version__} "
    f"{'compiled' if _COMPILE.value else 'eager'}: ours "
    f"{report['seconds']['ours']['median']:.3g} s, theirs "
    f"{report['seconds']['theirs']['median']:.3g} s; ours is "
    f"{report['ratio']['median']:.2f} times as fast "
    f"({report['ratio']['min']:.2f} to {report['ratio']['max']:.2f}); by CPU "
    f"time {report['cpu_ratio']['median']:.2f}, load {report['load']:.1f}"
  )
  machine.write(report)


if __name__ == "__main__":
  launcher.run(main)
