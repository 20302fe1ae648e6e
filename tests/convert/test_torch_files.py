"""Files of torch.save: `pip install -e '.[convert]'` enables these tests."""

import collections
import shutil

import numpy as np
import pytest

from cfgd.convert import guided_diffusion
from tests.convert import test_guided_diffusion as common

torch = pytest.importorskip("torch")


def save(path, value, **options):
  torch.save(value, path, **options)
  return path


def tensors(state):
  return {key: torch.from_numpy(weight) for key, weight in state.items()}


@pytest.fixture(scope="module")
def weights():
  return common.small_weights()


@pytest.fixture(scope="module")
def saved(weights, tmp_path_factory):
  path = tmp_path_factory.mktemp("saved") / "weights.pt"
  return save(path, tensors(weights[2]))


@pytest.mark.parametrize("new_format", [True, False])
def test_a_file_is_read_bit_for_bit(weights, tmp_path, new_format):
  shapes, params, state = weights
  path = save(
    tmp_path / "weights.pt",
    collections.OrderedDict(tensors(state)),
    _use_new_zipfile_serialization=new_format,
  )
  read = guided_diffusion.read(path)
  common.assert_same_bits(read, state)
  converted = guided_diffusion.to_flax(read, shapes, path=path)
  common.assert_same_bits(converted, params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_widened_exactly(tmp_path, dtype):
  half = torch.linspace(-3, 3, 101).to(getattr(torch, dtype))
  path = save(tmp_path / "weights.pt", {"a": half})
  read = guided_diffusion.read(path)["a"]
  assert read.dtype == np.float32
  np.testing.assert_array_equal(read, half.float().numpy())


def test_parameters_and_views_are_tensors(tmp_path):
  base = torch.arange(12.0).reshape(3, 4)
  path = save(
    tmp_path / "weights.pt", {"a": torch.nn.Parameter(base), "b": base.T[1:]}
  )
  read = guided_diffusion.read(path)
  np.testing.assert_array_equal(read["a"], base.numpy())
  np.testing.assert_array_equal(read["b"], base.numpy().T[1:])


@pytest.mark.parametrize("part", [0.0001, 0.1, 0.5, 0.99, 0.9999])
def test_a_truncated_file_is_told(saved, tmp_path, part):
  content = saved.read_bytes()
  path = tmp_path / "weights.pt"
  path.write_bytes(content[: int(part * len(content))])
  common.refused(path, "truncated", "bytes", "expected a state dict")


def test_a_file_with_a_hole_is_told(saved, tmp_path):
  content = saved.read_bytes()
  path = tmp_path / "weights.pt"
  path.write_bytes(content[:5000] + content[9000:])
  common.refused(path, "damaged", "expected a state dict")


def test_a_truncated_file_of_the_old_format_is_told(weights, tmp_path):
  path = save(
    tmp_path / "weights.pt",
    tensors(weights[2]),
    _use_new_zipfile_serialization=False,
  )
  content = path.read_bytes()
  for part in (0.001, 0.5, 0.999):
    path.write_bytes(content[: int(part * len(content))])
    common.refused(path, "damaged", "expected a state dict")


@pytest.mark.parametrize("new_format", [True, False])
def test_code_is_refused_and_not_run(tmp_path, new_format):
  path = save(
    tmp_path / "weights.pt",
    {"a": common.Code(tmp_path / "ran")},
    _use_new_zipfile_serialization=new_format,
  )
  common.refused(path, "a pickle with code", "not run")
  assert not (tmp_path / "ran").exists()


def test_a_pickled_module_is_refused(tmp_path):
  path = save(tmp_path / "weights.pt", torch.nn.Linear(2, 2))
  common.refused(path, "a pickle with code (torch.nn.modules.linear.Linear)")


@pytest.mark.parametrize(
  ("value", "found"),
  [
    ({"state_dict": {"a": torch.ones(2)}}, "type dict under 'state_dict'"),
    ({"a": torch.ones(2), "step": 7}, "type int under 'step'"),
    ({0: torch.ones(2)}, "the key 0"),
    ({"a": torch.ones(2, dtype=torch.int64)}, "torch.int64"),
    ({"a": torch.eye(2).to_sparse()}, "torch.sparse_coo"),
    ([torch.ones(2)], "an object of type list"),
    (torch.ones(2), "an object of type Tensor"),
  ],
)
def test_what_is_no_state_dict_is_told(tmp_path, value, found):
  path = save(tmp_path / "weights.pt", value)
  common.refused(path, found, "expected a state dict")


def test_another_zip_is_told(tmp_path):
  path = tmp_path / "weights.pt"
  with open(path, "wb") as file:
    np.savez(file, a=np.ones(3))
  common.refused(path, "a damaged or foreign file")
  common.write_archive(path)
  common.refused(path, "a damaged or foreign file")


def test_parameters_outlive_the_file(weights, saved, tmp_path):
  shapes, params, _ = weights
  path = shutil.copy(saved, tmp_path / "weights.pt")
  state = guided_diffusion.read(path)
  converted = guided_diffusion.to_flax(state, shapes, path=path)
  path.write_bytes(b"")
  common.assert_same_bits(converted, params)
