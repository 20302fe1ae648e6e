"""Who joins whom, and what is said when that does not work."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from cfgd.runtime import distributed
from cfgd.runtime import errors

ROOT = pathlib.Path(__file__).parents[2]
SLURM = {
  "SLURM_JOB_ID": "7",
  "SLURM_NTASKS": "4",
  "SLURM_PROCID": "2",
  "SLURM_LOCALID": "0",
  "SLURM_STEP_NODELIST": "node[1-4]",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}


def explicit(process, count=4):
  return {
    "coordinator_address": "host:99",
    "num_processes": count,
    "process_id": process,
  }


ADDRESS = {"JAX_COORDINATOR_ADDRESS": "host:99"}


@pytest.mark.parametrize(
  ("environment", "arguments"),
  [
    ({}, None),
    (
      ADDRESS | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
      explicit(1, 2),
    ),
    (
      {
        "COORDINATOR_ADDRESS": "host:99",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "0",
      },
      explicit(0, 2),
    ),
    (SLURM, {}),
    (SLURM | ADDRESS, explicit(2)),
    # The script of a SLURM job, outside of srun, is one process.
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, None),
    (SLURM | {"SLURM_NTASKS": "1"}, None),
    (SLURM | {"JAX_NUM_PROCESSES": "1"}, None),
    (OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.1:3"}, {}),
    (OPEN_MPI | ADDRESS, explicit(3)),
    ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, {}),
    ({"TPU_WORKER_HOSTNAMES": "t0"}, None),
    ({"MEGASCALE_COORDINATOR_ADDRESS": "t0:8080"}, {}),
  ],
)
def test_environments(environment, arguments, monkeypatch):
  assert distributed.cluster(environment) == arguments
  called = []
  monkeypatch.setattr(
    jax.distributed, "initialize", lambda **given: called.append(given)
  )
  monkeypatch.setattr(distributed.os, "environ", environment)
  distributed.initialize(join_seconds=300, peer_seconds=100)
  if arguments is None:
    assert not called
  else:
    assert called[0].items() >= arguments.items()
    assert called[0]["heartbeat_timeout_seconds"] > 100


@pytest.mark.parametrize(
  ("environment", "words"),
  [
    (ADDRESS, "without JAX_NUM_PROCESSES"),
    (ADDRESS | {"JAX_NUM_PROCESSES": "2"}, "without JAX_PROCESS_ID"),
    (
      ADDRESS | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
      r"JAX_PROCESS_ID=2: must be in 0\.\.1",
    ),
    (ADDRESS | {"JAX_NUM_PROCESSES": "two"}, "must be an integer"),
    (
      {
        "JAX_COORDINATOR_ADDRESS": "host",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "0",
      },
      "must be HOST:PORT",
    ),
    (OPEN_MPI, "4 processes and no JAX_COORDINATOR_ADDRESS"),
  ],
)
def test_what_is_missing_is_named(environment, words):
  with pytest.raises(errors.UserError, match=words):
    distributed.cluster(environment)


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
  assert done.returncode == 1
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
