"""Files of Inception's weights: found, checked, kept.

`pip install -e '.[convert]'` enables these tests.
"""

import hashlib
import io
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest

from cfgd.convert import inception as inception_weights
from cfgd.runtime import errors
from tests import processes

torch = pytest.importorskip("torch")

GOOD = "Conv2d_1a_3x3.conv.weight"


@pytest.fixture(scope="module")
def state(golden):
  """Return a state dict of the published names and shapes, cheap to save."""
  with golden("inception_fid") as arrays:
    names, shapes = arrays["param_names"], arrays["param_shapes"]
  drawn = {}
  for name, shape in zip(names, shapes, strict=True):
    if name.endswith("num_batches_tracked"):
      drawn[str(name)] = torch.zeros((), dtype=torch.int64)
    else:
      drawn[str(name)] = torch.full(tuple(shape[shape > 0]), 0.5)
  return drawn


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory):
  path = tmp_path_factory.mktemp("weights") / "weights.pth"
  torch.save(state, path)
  return path


def refused(words, path, cache_dir):
  with pytest.raises(errors.UserError, match=words) as caught:
    inception_weights.load(path, cache_dir)
  assert len(str(caught.value)) < 600
  assert not list(cache_dir.glob("*.npz"))


def test_weights_are_converted_once(saved, tmp_path, monkeypatch):
  params, name = inception_weights.load(saved, tmp_path)
  digest = hashlib.sha256(saved.read_bytes()).hexdigest()
  assert name == f"inception-{digest[:8]}"
  # weight 0.5 over a deviation of sqrt(0.5 + 0.001), times the scale of 0.5.
  factor = 0.5 / np.sqrt(0.501)
  block = params["Mixed_7c"]["branch3x3_2b"]
  assert block["kernel"].shape == (3, 1, 384, 384)
  np.testing.assert_allclose(block["kernel"], 0.5 * factor, rtol=1e-6)
  np.testing.assert_allclose(block["bias"], 0.5 - 0.5 * factor, rtol=1e-6)
  np.testing.assert_array_equal(params["fc"]["bias"], 0.5)
  kept = list(tmp_path.iterdir())
  assert len(kept) == 1
  monkeypatch.setattr(torch, "load", None)
  for path in (saved, kept[0]):
    again, same_name = inception_weights.load(path, tmp_path)
    assert same_name == name
    np.testing.assert_array_equal(
      again["Mixed_5b"]["branch1x1"]["kernel"],
      params["Mixed_5b"]["branch1x1"]["kernel"],
    )


LOAD = """
import sys
sys.modules["torch"] = None  # as if it were not installed
from cfgd.convert import inception
print(inception.load(sys.argv[1], "/nowhere")[1])
print(inception.load("", sys.argv[2])[1])
"""


def test_one_command_converts_for_machines_without_pytorch(saved, tmp_path):
  code, out, err = processes.run(
    *("import_checkpoint", "--model=inception"),
    *(f"--source={saved}", f"--workdir={tmp_path}"),
  )
  assert code == 0, err
  (kept,) = tmp_path.iterdir()
  assert out == f"score with --config.metrics.inception={kept}\n"
  # In a cache folder the published file is found by its hash.
  published = f"inception-{inception_weights.SHA256[:16]}.npz"
  (tmp_path / published).write_bytes(kept.read_bytes())
  done = subprocess.run(
    [sys.executable, "-c", LOAD, str(kept), str(tmp_path)],
    cwd=processes.ROOT,
    capture_output=True,
    text=True,
    timeout=240,
  )
  name = f"inception-{hashlib.sha256(saved.read_bytes()).hexdigest()[:8]}"
  assert done.stdout.split() == [name, name], done.stderr


def test_layouts():
  shapes = inception_weights.torch_shapes()
  state = {k: np.full(s, 0.5, np.float32) for k, s in shapes.items()}
  numbers = np.arange(32 * 27, dtype=np.float32).reshape(32, 3, 3, 3)
  state[GOOD] = numbers
  params = inception_weights.convert(state, path="here")
  factor = 0.5 / np.sqrt(0.501)
  found = params["Conv2d_1a_3x3"]["kernel"]
  assert found.shape == (3, 3, 3, 32)
  np.testing.assert_allclose(
    found[1, 2, 0, 7], factor * numbers[7, 0, 1, 2], rtol=1e-6
  )


def save(path, state):
  torch.save(state, path)
  return path


def test_other_files_are_refused(state, tmp_path):
  cache = tmp_path / "cache"
  cache.mkdir()
  path = tmp_path / "weights.pth"
  lacking = {k: v for k, v in state.items() if k != GOOD}
  refused(f"1 missing .'{GOOD}'", save(path, lacking), cache)
  other = state | {GOOD: torch.zeros(32, 3, 5, 5)}
  refused(r"has shape \(32, 3, 5, 5\), the network", save(path, other), cache)
  broken = state | {GOOD: torch.full((32, 3, 3, 3), torch.nan)}
  refused(f"{GOOD} has numbers that are not finite", save(path, broken), cache)
  path.write_bytes(path.read_bytes()[:1000])
  refused("truncated", path, cache)
  refused("no such file; get pt_inception", tmp_path / "none.pth", cache)
  converted = tmp_path / "other.npz"
  np.savez(converted, a=np.ones(3))
  refused("not converted Inception weights", converted, cache)


def test_fetching_says_what_went_wrong(tmp_path, monkeypatch):
  def unreachable(address, timeout):
    assert timeout < 100
    raise urllib.error.URLError("no route")

  monkeypatch.setattr(urllib.request, "urlopen", unreachable)
  refused("pytorch-fid: .*no route.*--config.metrics.inception=", "", tmp_path)
  monkeypatch.setattr(
    urllib.request, "urlopen", lambda address, timeout: io.BytesIO(b"error")
  )
  refused("SHA-256 [0-9a-f]{8}..., not 6726825d", "", tmp_path)
  assert not list(tmp_path.iterdir())


def test_what_is_fetched_is_checked_and_kept(saved, tmp_path, monkeypatch):
  digest = hashlib.sha256(saved.read_bytes()).hexdigest()
  monkeypatch.setattr(inception_weights, "SHA256", digest)
  asked = []

  def reply(address, timeout):
    asked.append(address)
    return saved.open("rb")

  monkeypatch.setattr(urllib.request, "urlopen", reply)
  _, name = inception_weights.load("", tmp_path)
  assert name == f"inception-{digest[:8]}"
  inception_weights.load("", tmp_path)
  assert asked == [inception_weights.ADDRESSES[0]]
