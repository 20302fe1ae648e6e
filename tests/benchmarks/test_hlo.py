"""The reader of compiled programs, against XLA's own counts."""

import functools

import jax
import jax.numpy as jnp
import pytest

from benchmarks import hlo


def array(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def counted(f, *arrays):
  """Return (ours, XLA's) FLOP of a function of products alone."""
  lowered = jax.jit(f).lower(*arrays)
  found = hlo.operations(lowered.compiler_ir("hlo").as_hlo_text())
  return sum(each.flop for each in found), lowered.cost_analysis()["flops"]


@pytest.mark.parametrize(
  "how",
  [
    {"window_strides": (1, 1), "padding": "SAME"},
    {"window_strides": (2, 1), "padding": ((1, 1), (2, 0))},
    {"window_strides": (1, 1), "padding": "VALID", "rhs_dilation": (2, 3)},
    {
      "window_strides": (1, 1),
      "padding": ((2, 2), (2, 2)),
      "lhs_dilation": (2, 2),
    },
    {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 2},
  ],
)
def test_convolutions_count_as_xla_does(how):
  convolve = functools.partial(
    jax.lax.conv_general_dilated,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    **how,
  )
  groups = how.get("feature_group_count", 1)
  ours, theirs = counted(
    convolve, array(2, 9, 7, 4), array(3, 3, 4 // groups, 6)
  )
  assert ours == theirs > 0


@pytest.mark.parametrize(
  ("equation", "shapes"),
  [
    ("ij,jk->ik", [(5, 7), (7, 3)]),
    ("bhqd,bhkd->bhqk", [(2, 3, 8, 4), (2, 3, 6, 4)]),
    ("bij,bij->b", [(2, 5, 7), (2, 5, 7)]),
  ],
)
def test_products_count_as_xla_does(equation, shapes):
  ours, theirs = counted(
    functools.partial(jnp.einsum, equation), *(array(*s) for s in shapes)
  )
  assert ours == theirs > 0


def test_a_loops_body_and_a_branch_are_seen():
  def loop(x, w):
    x = jax.lax.fori_loop(0, 10, lambda _, x: x @ w, x)
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x)

  ours, _ = counted(loop, array(8, 8), array(8, 8))
  assert ours == 2 * 2 * 8**3


def test_bytes_are_of_operands_and_results():
  def add(x, y):
    return x + y

  text = jax.jit(add).lower(
    array(4, 8, dtype=jnp.bfloat16), array(4, 8, dtype=jnp.bfloat16)
  )
  (only,) = hlo.operations(text.compiler_ir("hlo").as_hlo_text())
  assert only.bytes == 3 * 4 * 8 * 2


# As TPU's and GPU's compilers write them, in small.
_TPU = """
HloModule jit__fun, is_scheduled=true

%fused (a: bf16[2,4,16], b: bf16[2,4,16]) -> f32[2,16,16] {
  %a = bf16[2,4,16]{2,1,0} parameter(0)
  %b = bf16[2,4,16]{2,1,0} parameter(1)
  ROOT %c = f32[2,16,16]{2,1,0:T(8,128)} convolution(%a, %b), window={size=2 \
stride=1 lhs_dilate=2}, dim_labels=0fb_0io->0bf
}

ENTRY %main (x: bf16[2,4,16], y: bf16[2,4,16]) -> f32[2,16,16] {
  %x = bf16[2,4,16]{2,1,0:T(8,128)(2,1)} parameter(0)
  %y = bf16[2,4,16]{2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %f = f32[2,16,16]{2,1,0:T(8,128)} fusion(%x, %y), kind=kOutput, \
calls=%fused, metadata={op_name="jit(_fun)/shard_map/transpose(jvp(UNet))/\
UNet._up/output_blocks_11_1/qkv/dot_general"}, backend_config={"window_config":\
{"estimated_cycles":"1826"}}
}
"""
_GPU = """
HloModule jit__fun

ENTRY %main (q: bf16[2,8,3,16], k: bf16[2,8,3,16], v: bf16[2,8,3,16]) -> f32[] {
  %q = bf16[2,8,3,16]{3,2,1,0} parameter(0)
  %k = bf16[2,8,3,16]{3,2,1,0} parameter(1)
  %v = bf16[2,8,3,16]{3,2,1,0} parameter(2)
  ROOT %a = (bf16[2,3,8,16]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %v), \
custom_call_target="__cudnn$fmhaSoftmax", metadata={op_name="jit(_fun)/UNet/\
middle_block_1/dot_product_attention_fwd"}, backend_config=\
{"cudnn_fmha_backend_config":{"intermediate_tensor_shape":{"dimensions":\
["2","3","8","8"]}}}
}
"""


def test_a_tpus_batched_product_is_a_convolution():
  (only,) = hlo.operations(_TPU)
  # The two batches meet themselves alone: four products per pair of 16.
  assert only.flop == 2 * 2 * 4 * 16 * 16
  assert only.bytes == 2 * 2 * 4 * 16 * 2 + 4 * 2 * 16 * 16
  assert only.module == "output_blocks_11_1/qkv backward"
  assert only.cycles == 1826
  assert hlo.by_module([only, only], "cycles") == [(only.module, 3652)]


def test_cudnns_attention_is_two_products():
  (only,) = hlo.operations(_GPU)
  assert only.flop == 2 * 2 * (2 * 3 * 8 * 8) * 16
  assert only.module == "middle_block_1"
