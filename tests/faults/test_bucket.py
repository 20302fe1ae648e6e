"""A bucket holds what a disk would, whatever was killed on the way."""

import fsspec
import jax
import numpy as np
import pytest

from cfgd import build
from cfgd.convert import guided_diffusion
from cfgd.runtime import checkpoint
from cfgd.runtime import errors
from cfgd.runtime import files
from cfgd.runtime import lease
from cfgd.training import importer
from tests.faults import bucket
from tests.models import golden_weights


@pytest.fixture(scope="module")
def folder():
  with bucket.server():
    fsspec.filesystem("gcs").clear_instance_cache()
    yield bucket.make_bucket("cfgd-tests")


@pytest.mark.parametrize(
  ("place", "words"),
  [
    ("gs://none/a", "no such bucket"),
    ("gs://", "no such bucket"),
    ("gs://cfgd-tests/a[1]", "must contain none of"),
    ("disk[1]", "must contain none of"),
    ("nothing://x/y", "Protocol not known"),
  ],
)
def test_a_place_that_cannot_be_used_is_refused(folder, place, words):
  with pytest.raises(errors.UserError, match=words):
    files.check_place(place)
  files.check_place(folder / "new")


def test_a_file_appears_whole_or_not_at_all(folder):
  path = folder / "file.npz"
  with pytest.raises(KeyError), files.open_atomic(path) as file:
    file.write(b"half")
    raise KeyError
  assert not path.exists()
  with files.open_atomic(path) as file:
    np.savez(file, a=np.arange(10**6))
  with path.open("rb") as file:
    np.testing.assert_array_equal(np.load(file)["a"], np.arange(10**6))
  files.write_atomic(path, "other")
  assert path.read_text() == "other"


def test_one_job_holds_a_lease_and_the_next_takes_over(folder):
  path = folder / "new" / "work"
  with lease.hold(path, seconds=60, wait=False) as check:
    check()
    with (
      pytest.raises(lease.Busy, match="held by process"),
      lease.hold(path, seconds=60, wait=False),
    ):
      pass
  with lease.hold(path, seconds=60, wait=False):
    pass
  assert not path.parent.exists()


def test_a_holder_that_was_overtaken_learns_of_it_and_leaves_the_other(folder):
  path = folder / "overtaken"
  first, second = lease._Lease(path, 60), lease._Lease(path, 60)
  assert first.take()
  first._store.rm_file(first._path(1))
  assert second.take()  # by the same number
  assert not first._is_mine()
  first.release()
  assert second._is_mine()
  second.release()
  assert not (folder / "overtaken.lease.1").exists()


def test_imported_weights_lie_in_a_bucket(folder, tiny, monkeypatch):
  tiny.model.null_row = False
  tiny.diffusion.p_uncond = 0.0
  tiny.sampling.w = 0.0
  params, state = golden_weights.fill(build.param_shapes(tiny))
  monkeypatch.setattr(guided_diffusion, "read", lambda path: state)
  importer.import_checkpoint(tiny, folder / "adm", "weights.pt")
  assert checkpoint.find_step(folder / "adm", -1) == 0
  for weights in ("ema", "raw"):
    read = checkpoint.read_params(
      folder / "adm", 0, build.param_shapes(tiny), weights
    )
    jax.tree.map(np.testing.assert_array_equal, read, params)
  with pytest.raises(errors.UserError, match="has checkpoints"):
    importer.import_checkpoint(tiny, folder / "adm", "weights.pt")


@pytest.mark.slow
def test_everything_runs_in_a_bucket_as_on_disk(tmp_path):
  kills, differences = bucket.compare(tmp_path)
  assert not differences
  assert kills >= 5
