"""Read a compiled program's text: FLOP and bytes of each operation."""

import collections
import json
import math
import re
from typing import NamedTuple

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # others have them in the name
_ARRAY = re.compile(r"(pred|token|opaque|[a-z]+\d+[a-z0-9]*)\[([0-9,]*)\]")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([^ ]+) = (.*)$")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) (?:\(.*)?\{$")
_NAME = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(
  r"(?:calls|to_apply|body|true_computation|false_computation)=%?([^ ,)}]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# Control flow: what it calls is work of its own.
_CONTROL = {"while", "conditional", "call"}
_NO_WORK = {
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
  *("while", "conditional", "call", "after-all"),
  # What is fetched ahead counts where it is read.
  *("copy-start", "copy-done"),
}


class Operation(NamedTuple):
  """One operation of a compiled program, such as a fusion.

  Attributes:
    name: of the operation.
    module: path in the network, with "backward" in the backward pass; "" for
      work outside of it.
    flop: of matrix products and convolutions; zeros of padding do not count.
    bytes: of operands and results.
    cycles: by the compiler's own cost model, 0 where it has none.
  """

  name: str
  module: str
  flop: int
  bytes: int
  cycles: int


class _Instruction(NamedTuple):
  name: str
  shapes: list  # [(dtype, dims)] of the result
  opcode: str
  operands: list  # names
  text: str


def operations(text):
  """Return the Operation list of a compiled module's text.

  A loop's body counts once; of a conditional's branches counts the one with the
  most FLOP.
  """
  computations, entry = _computations(text)
  found = []
  for name in _reached(computations, entry):
    known = {each.name: each for each in computations[name]}
    for each in computations[name]:
      if each.opcode in _NO_WORK:
        continue
      cycles = _CYCLES.search(each.text)
      operands = [
        s for o in each.operands if o in known for s in known[o].shapes
      ]
      found.append(
        Operation(
          each.name,
          _module(each.text),
          _flop(each, known, computations),
          _bytes(each.shapes) + _bytes(operands),
          int(cycles[1]) if cycles else 0,
        )
      )
  return found


def by_module(found, attribute):
  """Return [(module, sum)] of an attribute, the largest first."""
  sums = collections.Counter()
  for each in found:
    sums[each.module or "outside the network"] += getattr(each, attribute)
  return sums.most_common()


def _computations(text):
  """Return ({name: [_Instruction]}, the entry's name)."""
  computations, entry, current = {}, None, None
  for line in text.splitlines():
    header = _HEADER.match(line)
    if header:
      current = computations.setdefault(header[2], [])
      entry = header[2] if header[1] else entry
    elif current is not None and (match := _INSTRUCTION.match(line)):
      current.append(_instruction(match[1], match[2]))
  return computations, entry


def _instruction(name, rest):
  """Parse "TYPE opcode(operands), attributes"."""
  head = re.match(r"(\((?:[^()]|\([^()]*\))*\)|\S+) ([\w-]+)\(", rest)
  if head is None:
    return _Instruction(name, [], "", [], rest)
  end = rest.find(")", head.end())
  operands = re.findall(r"%?([^ ,()%]+)(?:,|$)", rest[head.end() : end])
  return _Instruction(name, _arrays(head[1]), head[2], operands, rest)


def _arrays(text):
  return [
    (dtype, tuple(int(n) for n in dims.split(",") if n))
    for dtype, dims in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", text))
  ]


def _bytes(shapes):
  def bits(dtype):
    return _BITS[dtype] if dtype in _BITS else int(re.search(r"\d+", dtype)[0])

  return sum(bits(dtype) * math.prod(dims) // 8 for dtype, dims in shapes)


def _called(instruction):
  names = _CALLED.findall(instruction.text)
  for branches in _BRANCHES.findall(instruction.text):
    names += re.findall(r"[^ ,%]+", branches)
  return names


def _reached(computations, entry):
  """Return the computations that control flow reaches from the entry."""
  reached, waiting = [], [entry]
  while waiting:
    name = waiting.pop()
    if name in reached:
      continue
    reached.append(name)
    for each in computations[name]:
      if each.opcode in _CONTROL:
        called = [c for c in _called(each) if c in computations]
        if each.opcode == "conditional":
          called = [max(called, key=lambda c: _total_flop(c, computations))]
        waiting += called
  return reached


def _total_flop(name, computations):
  """Return the FLOP of a computation and of all that it calls."""
  known = {each.name: each for each in computations[name]}
  total = 0
  for each in computations[name]:
    total += _flop(each, known, computations)
    if each.opcode in _CONTROL:
      called = (c for c in _called(each) if c in computations)
      total += sum(_total_flop(c, computations) for c in called)
  return total


def _module(text):
  """Return where an operation comes from, by Flax's names."""
  name = _NAME.search(text)
  if name is None:
    return ""
  backward = "transpose(" in name[1]
  # The innermost module: its path has input_blocks_3_0/out_layers_3 and alike.
  path = re.search(
    r"((?:input_blocks|middle_block|output_blocks)_[\d_]+)(?:/([a-z]+_?\w*))?"
    r"|(time_embed_\d|label_emb|out_[02])",
    name[1],
  )
  if path is None:
    return ""
  block, part, other = path.groups()
  parts = [other] if other else [block]
  if part and re.fullmatch(
    r"(in_layers|out_layers|emb_layers)_\d|skip_connection|norm|qkv|proj_out",
    part,
  ):
    parts.append(part)
  return "/".join(parts) + (" backward" if backward else "")


def _flop(instruction, known, computations):
  """Return the FLOP of an instruction, of what a fusion calls included."""
  opcode, text = instruction.opcode, instruction.text
  if opcode == "fusion":
    return sum(
      _flop(each, {i.name: i for i in computations[name]}, computations)
      for name in _called(instruction)
      for each in computations.get(name, ())
    )
  operands = [known[o].shapes for o in instruction.operands if o in known]
  shapes = [s[0][1] for s in operands if s]
  if opcode == "convolution":
    return _convolution(*shapes[:2], instruction.shapes[0][1], text)
  if opcode == "dot":
    return _product(shapes[0], instruction.shapes[0][1], text)
  if opcode == "custom-call":
    return _library_call(shapes, instruction.shapes[0][1], text)
  return 0


def _product(lhs, out, text):
  """Return the FLOP of a matrix product."""
  dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", text)
  if dims is None:  # in the JSON of a library call
    dims = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', text)
  contracted = [int(n) for n in re.findall(r"\d+", dims[1])]
  return 2 * math.prod(out) * math.prod(lhs[n] for n in contracted)


def _library_call(shapes, out, text):
  """Return the FLOP of a call of cuDNN or cuBLAS."""
  target = re.search(r'custom_call_target="([^"]*)"', text)[1]
  if "convBackwardInput" in target:
    return _convolution(out, shapes[1], shapes[0], text)
  if "convBackwardFilter" in target:
    return _convolution(shapes[0], out, shapes[1], text)
  if "cudnn$conv" in target:
    return _convolution(shapes[0], shapes[1], out, text)
  if "gemm" in target or "matmul" in target:
    return _product(shapes[0], out, text)
  if "fmha" in target:
    config = json.loads(text[text.index("backend_config=") + 15 :].strip())
    dims = config["cudnn_fmha_backend_config"]["intermediate_tensor_shape"]
    pairs = math.prod(int(n) for n in dims["dimensions"])
    products = 5 if "Backward" in target else 2
    return products * 2 * pairs * shapes[0][-1]
  return 0


def _convolution(lhs, rhs, out, text):
  """Return the FLOP of a convolution; a TPU's products are ones, too."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text).groups()
  window = re.search(r"window=\{([^}]*)\}", text)
  window = dict(part.split("=") for part in window[1].split()) if window else {}
  count = 1
  for index, size in enumerate(window.get("size", "").split("x")):
    if not size:
      continue
    lhs_size = lhs[labels[0].index(str(index))]
    out_size = out[labels[2].index(str(index))]
    count *= _valid(int(size), lhs_size, out_size, _axis(window, index))
  batch = out[labels[2].index("b")]
  features = out[labels[2].index("f")]
  return 2 * batch * features * rhs[labels[1].index("i")] * count


def _axis(window, index):
  """Return (stride, low padding, lhs dilation, rhs dilation) of an axis."""

  def get(name, default):
    return window[name].split("x")[index] if name in window else default

  pad = int(get("pad", "0_0").split("_")[0])
  return (
    int(get("stride", 1)),
    pad,
    int(get("lhs_dilate", 1)),
    int(get("rhs_dilate", 1)),
  )


def _valid(size, lhs, out, axis):
  """Count pairs of a kernel's and an output's place that meet the input."""
  stride, pad, lhs_dilate, rhs_dilate = axis
  count = 0
  for k in range(size):
    for o in range(out):
      place = o * stride + k * rhs_dilate - pad
      inside = 0 <= place <= (lhs - 1) * lhs_dilate
      count += inside and place % lhs_dilate == 0
  return count
