"""Check the networks' numbers on this device against stored and other ones.

  python -m benchmarks.parity --json=DIR/parity.json

Small networks of guided-diffusion (tests/golden), whose outputs and gradients
were computed in float64, in float32 with the limits of the tests, and in
bfloat16. Attention by cuDNN beside XLA's in bfloat16, at the shapes of the
paper's two models. Exit code 1 if a limit is broken.

"largest" is the largest difference and "rms" its root mean square, both in root
mean squares of what is right. Gradients are with respect to the images. Of the
parameters' gradients, "norm" and "projection" (on a fixed direction) are
relative to their norms.
"""

import pathlib

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from cfgd.models import blocks
from cfgd.runtime import errors
from configs import imagenet64
from configs import imagenet128
from experiments import launcher
from tests.models import golden_cases

_BATCH = flags.DEFINE_integer("batch", 8, "Images of the attention.", 1)
_GOLDEN = pathlib.Path(launcher.ROOT) / "tests" / "golden" / "adm_unet.npz"
_NETWORKS = ("small", "small_neworder")  # those whose gradients are stored
# float32: those of tests/models/test_parity.py. bfloat16 has 8 bits, so that a
# rounding is up to 0.4% of a number, and these networks make some twenty in a
# row. XLA:CPU has 0.019, 0.031, 0.045 and 0.11 here; the limits are about twice
# that.
_LIMITS = {
  "float32": {
    "output": {"largest": 1e-4},
    "gradient": {"largest": 2e-4},
    "parameters": {"norm": 1e-4, "projection": 3e-4},
  },
  "bfloat16": {
    "output": {"rms": 0.05},
    "gradient": {"rms": 0.05},
    "parameters": {"norm": 0.1, "projection": 0.2},
  },
}
# Both round q, k, v, weights and results to bfloat16, at other places.
_ATTENTION_LIMIT = {"rms": 0.02}


def distance(actual, desired):
  """Return the differences of two arrays in root mean squares of `desired`."""
  actual, desired = np.float64(actual), np.float64(desired)
  scale = np.sqrt(np.mean(desired**2))
  apart = np.abs(actual - desired)
  return {
    "largest": float(apart.max() / scale),
    "rms": float(np.sqrt(np.mean(apart**2)) / scale),
  }


def _worst(rows):
  """Return the largest of each key of some dictionaries; NaN stays NaN."""
  return {key: float(np.max([row[key] for row in rows])) for key in rows[0]}


def network_errors(arrays, name, dtype):
  """Return {"output", "gradient", "parameters": {measure: error}}.

  Args:
    arrays: of adm_unet.npz.
    name: of the network in it.
    dtype: of matmuls and convolutions.
  """
  case = golden_cases.Case(arrays, name, dtype)

  def scalar(params, z, time, label, target):
    out = case.network.apply({"params": params}, z, time, label)
    return (out * target).sum(), out

  gradient = jax.jit(jax.grad(scalar, argnums=(0, 1), has_aux=True))
  rows = {"output": [], "gradient": [], "parameters": []}
  for call, desired in enumerate(case["out_nchw"]):
    inputs = *case.inputs(call), case.targets(call)
    (of_params, of_z), out = gradient(case.params, *inputs)
    rows["output"].append(distance(golden_cases.nchw(out), desired))
    rows["gradient"].append(
      distance(golden_cases.nchw(of_z), case["grad_x_nchw"][call])
    )
    rows["parameters"].append(case.parameter_errors(call, of_params))
  return {what: _worst(each) for what, each in rows.items()}


def attention_shapes(config):
  """Return the (tokens, heads, head width) of a config's attention blocks."""
  model, shapes = config.model, []
  for level, mult in enumerate(model.channel_mult):
    side = config.data.image_size >> level
    if side in model.attention_resolutions:
      channels = int(mult * model.model_channels)
      width = model.num_head_channels or channels // model.num_heads
      shapes.append((side**2, channels // width, width))
  return shapes


def _attention_and_gradients(attend, inputs, target):
  """Return [output, gradients of q, k, v] of an attention, [B, N, H, C]."""

  @jax.jit
  def run(inputs):
    out, pull = jax.vjp(attend, *inputs)
    return [out, *pull(target.astype(out.dtype))]

  return [np.float32(array) for array in run(inputs)]


def _by_cudnn(q, k, v):
  return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


def attention_errors(tokens, heads, width):
  """Compare cuDNN's attention, XLA's, and XLA's in float32.

  Returns:
    {what is compared: {"output", "dq", "dk", "dv": {measure: error}}}, without
    cuDNN's where this device has none for such a shape.
  """
  device = jax.devices()[0]
  chosen = blocks.attention_implementation(
    device.platform,
    getattr(device, "compute_capability", None),
    jnp.bfloat16,
    tokens=tokens,
    head_width=width,
  )
  rng = np.random.default_rng(0)
  shape = (_BATCH.value, tokens, heads, width)
  *inputs, target = (
    jnp.asarray(rng.standard_normal(shape, np.float32), jnp.bfloat16)
    for _ in range(4)
  )
  exact = [array.astype(jnp.float32) for array in inputs]
  by_xla = blocks._attend_by_xla
  results = {
    "float32": _attention_and_gradients(by_xla, exact, target),
    "XLA": _attention_and_gradients(by_xla, inputs, target),
  }
  pairs = [("XLA", "float32")]
  if chosen == "cudnn":
    results["cuDNN"] = _attention_and_gradients(_by_cudnn, inputs, target)
    pairs += [("cuDNN", "float32"), ("cuDNN", "XLA")]
  return {
    f"{one} beside {other}": {
      name: distance(*both)
      for name, *both in zip(
        ("output", "dq", "dk", "dv"), results[one], results[other], strict=True
      )
    }
    for one, other in pairs
  }


def broken(found, limits):
  """Return the names of the measures that are not below their limits."""
  # A comparison with NaN is false.
  return [name for name, most in limits.items() if not found[name] < most]


def _describe(found, limits):
  """Return measures as text, with the limits of those that have one."""
  return ", ".join(
    f"{name} {value:.2g}"
    + (f" (limit {limits[name]:g})" if name in limits else "")
    for name, value in found.items()
  )


def _report(rows, name, found, limits):
  """Print a comparison and append it to the report's rows."""
  wrong = broken(found, limits)
  line = f"{name}: {_describe(found, limits)}"
  print(f"{line}: BROKEN" if wrong else line, flush=True)
  rows.append({"name": name, **found, "limits": limits, "broken": wrong})


def _check_networks(rows):
  with np.load(_GOLDEN) as stored:
    arrays = dict(stored)
  for dtype, limits in _LIMITS.items():
    for name in _NETWORKS:
      found = network_errors(arrays, name, dtype)
      for what, each in found.items():
        _report(rows, f"{name}, {dtype}, {what}", each, limits[what])


def _check_attention(rows):
  """Compare attention at all shapes; return whether cuDNN's was there."""
  both = imagenet64.get_config(), imagenet128.get_config()
  shapes = sorted({one for config in both for one in attention_shapes(config)})
  missing = []
  for shape in shapes:
    tokens, heads, width = shape
    name = f"attention, {tokens} tokens, {heads} heads of {width}"
    try:
      found = attention_errors(*shape)
    except Exception as error:  # one kernel's fault must not hide the others
      line = errors.first_line(error)
      print(f"{name}: BROKEN, {type(error).__name__}: {line}", flush=True)
      rows.append({"name": name, "broken": [line]})
      continue
    for pair, parts in found.items():
      for what, each in parts.items():
        _report(rows, f"{name}, {pair}, {what}", each, _ATTENTION_LIMIT)
    if "cuDNN beside XLA" not in found:
      missing.append(shape)
      print(f"{name}: skipped, no cuDNN attention on this platform")
  return len(missing) < len(shapes)


def main():
  """Compare, print, write JSON; fail if a limit is broken."""
  rows = []
  _check_networks(rows)
  has_cudnn = _check_attention(rows)
  wrong = [row["name"] for row in rows if row["broken"]]
  machine.write(
    machine.environment()
    | {"program": "parity", "cudnn": has_cudnn, "rows": rows, "broken": wrong}
  )
  if wrong:
    raise errors.RunError(f"{len(wrong)} limits are broken: {wrong[0]}, ...")
  print(f"all of {len(rows)} comparisons are within their limits")


if __name__ == "__main__":
  launcher.run(main)
