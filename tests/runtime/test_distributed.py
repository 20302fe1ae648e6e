"""Who joins whom, and what is said when that does not work."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
from jax._src import distributed as jax_distributed
import numpy as np
import pytest

from cfgd.runtime import distributed
from cfgd.runtime import errors

ROOT = pathlib.Path(__file__).parents[2]
SLURM = {
  "SLURM_JOB_ID": "7",
  "SLURM_STEP_NUM_TASKS": "4",
  "SLURM_NTASKS": "4",
  "SLURM_PROCID": "2",
  "SLURM_LOCALID": "0",
  "SLURM_STEP_NODELIST": "node[1-4]",
}
OPEN_MPI = {
  "OMPI_COMM_WORLD_SIZE": "4",
  "OMPI_COMM_WORLD_RANK": "3",
  "OMPI_COMM_WORLD_LOCAL_RANK": "0",
  "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.1:3",
}
ADDRESS = {"JAX_COORDINATOR_ADDRESS": "host:99"}


def joined(environment, monkeypatch):
  """Return (address, number of processes, process) that JAX would join."""
  for name in [
    k for k in os.environ if k.startswith(("SLURM", "OMPI", "JAX_"))
  ]:
    monkeypatch.delenv(name)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  state = jax_distributed.State()
  monkeypatch.setattr(jax_distributed, "global_state", state)
  monkeypatch.setattr(
    jax_distributed.xla_bridge, "backends_are_initialized", lambda: False
  )
  found = []

  def service(*arguments, **more):
    found.append((state.coordinator_address, state.process_id))
    raise ConnectionError

  for name in (
    "get_distributed_runtime_service",
    "get_distributed_runtime_client",
  ):
    monkeypatch.setattr(jax_distributed._jax, name, service)
  with contextlib.suppress(ConnectionError):
    distributed.initialize(join_seconds=300, peer_seconds=100)
  return found[0] if found else None


@pytest.mark.parametrize(
  ("environment", "found"),
  [
    ({}, None),
    (
      ADDRESS | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
      ("host:99", 1),
    ),
    # The port follows from the job's number.
    (SLURM, ("node1:61447", 2)),
    (SLURM | ADDRESS, ("host:99", 2)),
    # The script of a SLURM job, outside of srun, is one process.
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, None),
    (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
    (SLURM | {"JAX_NUM_PROCESSES": "1"}, None),
    (OPEN_MPI | ADDRESS, ("host:99", 3)),
  ],
)
def test_environments(environment, found, monkeypatch):
  assert joined(environment, monkeypatch) == found


@pytest.mark.parametrize(
  ("environment", "words"),
  [
    (ADDRESS, "JAX_NUM_PROCESSES=None.*set all three"),
    (ADDRESS | {"JAX_NUM_PROCESSES": "2"}, "JAX_PROCESS_ID=None: set all"),
    (
      ADDRESS | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
      "process_id < num_processes",
    ),
    (ADDRESS | {"JAX_NUM_PROCESSES": "two"}, "must be an integer"),
    (
      {
        "JAX_COORDINATOR_ADDRESS": "host",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "0",
      },
      "HOST:PORT of process 0",
    ),
    ({"JAX_NUM_PROCESSES": "4"}, "JAX_COORDINATOR_ADDRESS=None"),
    # Open MPI 5, which JAX does not detect.
    ({"OMPI_COMM_WORLD_SIZE": "4"}, "4 processes, .*set all three"),
  ],
)
def test_what_is_missing_is_named(environment, words, monkeypatch):
  with pytest.raises(errors.UserError, match=words):
    joined(environment, monkeypatch)


def test_a_missing_process_ends_the_others_with_one_line():
  with socket.socket() as server:
    server.bind(("localhost", 0))
    port = server.getsockname()[1]
  done = subprocess.run(
    [
      *(sys.executable, "-c"),
      "from cfgd.runtime import distributed\n"
      "distributed.initialize(join_seconds=1, peer_seconds=100)",
    ],
    cwd=ROOT,
    env=os.environ
    | {
      "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
      "JAX_NUM_PROCESSES": "2",
      "JAX_PROCESS_ID": "0",
    },
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == errors.EXIT_AGAIN
  assert done.stderr.startswith(
    f"error: not all of 2 processes were at localhost:{port} within 1 s"
  )
  assert len(done.stderr.splitlines()) == 1


def test_out_of_memory_names_what_to_lower():
  def fail(message):
    with distributed.naming_memory("a.b=3", "c.d=4"):
      raise jax.errors.JaxRuntimeError(message)

  with pytest.raises(errors.RunError, match=r"lower a\.b=3 or c\.d=4 \(RESOU"):
    fail("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")
  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
    fail("INTERNAL: something else")


def run_two(program, *arguments):
  """Run a program in two processes that join.

  Returns:
    [(exit code, lines of its output, its errors)].
  """
  with socket.socket() as server:
    server.bind(("localhost", 0))
    port = server.getsockname()[1]
  together = {
    "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
    "JAX_NUM_PROCESSES": "2",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
  }
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", program, *arguments],
      cwd=ROOT,
      env=os.environ | together | {"JAX_PROCESS_ID": str(i)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  try:
    streams = [process.communicate(timeout=600) for process in processes]
    return [
      (
        process.returncode,
        # Gloo writes from several threads, and into its own lines.
        [line for line in out.splitlines() if "peer ranks" not in line],
        err,
      )
      for process, (out, err) in zip(processes, streams, strict=True)
    ]
  finally:
    for process in processes:
      process.kill()


BY_LEAD = """
import jax
from cfgd.runtime import distributed, errors
distributed.initialize(join_seconds=120, peer_seconds=100)
called = []

def work(value):
  called.append(value)
  if isinstance(value, Exception):
    raise value
  return value

def attempt(value):
  try:
    return distributed.by_lead(lambda: work(value))
  except Exception as error:
    return f"{type(error).__name__}: {error}"

found = [attempt(v) for v in (
  {"fid": 0.1, "more": ["\u00e9" * 5000, None]},
  errors.UserError("a.npz: bad"),
  errors.NonFiniteError("not finite"),
  KeyError("defect"),
  None,
)]
print(len(found[0]["more"][0]), found[0]["fid"], found[1:], len(called))
"""


def test_the_others_get_what_the_first_process_made_or_its_error():
  (code, lead, err), (other_code, other, other_err) = run_two(BY_LEAD)
  assert (code, other_code) == (0, 0), err + other_err
  told = "'UserError: a.npz: bad', 'NonFiniteError: not finite'"
  assert lead == [f"5000 0.1 [{told}, \"KeyError: 'defect'\", None] 5"]
  assert other == [
    f"5000 0.1 [{told}, \"RuntimeError: process 0: KeyError: 'defect'\", "
    "None] 0"
  ]


def test_one_process_needs_no_other():
  with pytest.raises(KeyError, match="x"):
    distributed.by_lead(lambda: {}["x"])
  assert distributed.by_lead(lambda: 3) == 3


SCORE = """
import json, sys
import jax
import numpy as np
from cfgd.runtime import distributed
from cfgd.metrics import evaluate, feature_training, own, scores
from tests import conftest
distributed.initialize(join_seconds=120, peer_seconds=100)
workdir, samples, others = sys.argv[1:]
config = conftest.make_tiny()
counted = []
distance = scores.frechet_distance
scores.frechet_distance = lambda *a, **k: counted.append(1) or distance(*a, **k)

def untrained(network, source, arguments):
  x = np.zeros((1, *source.image_shape), np.float32)
  return jax.device_get(jax.jit(network.init)(jax.random.key(0), x)["params"])

feature_training._train = untrained
evaluate.prepare(config, workdir)
report = evaluate.evaluate(config, workdir, samples)
again = evaluate.evaluate(config, workdir, samples)
real = evaluate.held_out(config, workdir)
print(json.dumps([report, again, real, len(counted)]))

def fail(*arguments, **more):
  raise FloatingPointError("defect")

own._score = fail
try:
  evaluate.evaluate(config, workdir, others)
except Exception as error:
  print(type(error).__name__)
"""


def test_one_process_scores_for_all(tmp_path):
  paths = [str(tmp_path / name) for name in ("a.npz", "b.npz")]
  for seed, path in enumerate(paths):
    rng = np.random.default_rng(seed)
    np.savez(path, rng.integers(0, 256, (50, 4, 4, 1), np.uint8))
  ends = run_two(SCORE, str(tmp_path), *paths)
  assert [code for code, _, _ in ends] == [0, 0], ends
  (lead, lead_error), (other, other_error) = (out for _, out, _ in ends)
  *scored, lead_count = json.loads(lead)
  *same, other_count = json.loads(other)
  assert scored == same
  report, again, real = scored
  assert report == again
  assert report["metrics"]["fd_embedded"] > 0
  assert "fd_embedded" in real["metrics"]
  # Of samples and held-out images to training and to held-out images.
  assert (lead_count, other_count) == (4, 0)
  assert (lead_error, other_error) == ("FloatingPointError", "RuntimeError")
