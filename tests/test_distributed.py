"""Who joins whom, and what is said when that does not work."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import pytest

from cfgd import distributed
from cfgd import errors

ROOT = pathlib.Path(__file__).parent.parent
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
      "from cfgd import distributed\n"
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
