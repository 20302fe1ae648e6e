"""Processes and devices: who am I, how is a batch split, wait for all."""

import contextlib
import json
import os
import sys
import threading

import jax
from jax.experimental import multihost_utils
import numpy as np

from cfgd.runtime import errors

_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
# By which JAX is more patient than `peers`, whose line is to come first.
_LATER = 30
# Messages are filled up to a multiple of this, for fewer compilations.
_MESSAGE_BYTES = 4096


def initialize(*, join_seconds, peer_seconds):
  """Join the other processes if the environment names any; once, first.

  On a single machine it does nothing; `cluster` says what is looked at.

  Args:
    join_seconds: to wait for all processes; then the process ends with a line.
    peer_seconds: of silence after which a process counts as dead, and the
      others end.

  Raises:
    errors.UserError: the environment names processes and not all that is
      needed.
  """
  arguments = cluster(os.environ)
  if arguments is None:
    return
  with _ending_after(join_seconds, arguments):
    jax.distributed.initialize(
      **arguments,
      # JAX ends the process with a stack dump: ours comes first.
      initialization_timeout=join_seconds + 60,
      heartbeat_timeout_seconds=peer_seconds + _LATER,
      shutdown_timeout_seconds=peer_seconds,
    )


def cluster(environment):
  """Return the arguments of jax.distributed.initialize, None for one process.

  Args:
    environment: mapping such as os.environ. In this order: JAX's own
      JAX_COORDINATOR_ADDRESS (or COORDINATOR_ADDRESS), JAX_NUM_PROCESSES and
      JAX_PROCESS_ID, with the last two from Open MPI or SLURM where they are
      not set; a SLURM or Open MPI job of several tasks; a TPU pod.
      JAX_NUM_PROCESSES=1 is one process whatever else there is.
  """
  address = environment.get("JAX_COORDINATOR_ADDRESS") or environment.get(
    "COORDINATOR_ADDRESS"
  )
  names = ["JAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE"]
  if "SLURM_STEP_NODELIST" in environment:  # of srun; sbatch sets the others
    names.append("SLURM_NTASKS")
  count = _integer(environment, *names)
  process = _integer(
    environment, "JAX_PROCESS_ID", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"
  )
  if count == 1:
    return None
  if address:
    return _explicit(address, count, process)
  if count is not None and not _finds_coordinator(environment):
    raise errors.UserError(
      f"{count} processes and no JAX_COORDINATOR_ADDRESS: set it to HOST:PORT "
      "of process 0 in all of them, or JAX_NUM_PROCESSES=1"
    )
  if count is not None or _is_pod(environment):
    return {}
  return None


def _explicit(address, count, process):
  for name, value in (
    ("JAX_NUM_PROCESSES", count),
    ("JAX_PROCESS_ID", process),
  ):
    if value is None:
      raise errors.UserError(
        f"JAX_COORDINATOR_ADDRESS={address} without {name}: set it too"
      )
  if not 0 <= process < count:
    raise errors.UserError(
      f"JAX_PROCESS_ID={process}: must be in 0..{count - 1} where "
      f"JAX_NUM_PROCESSES={count}"
    )
  if not address.rpartition(":")[2].isdigit():
    raise errors.UserError(
      f"JAX_COORDINATOR_ADDRESS={address}: must be HOST:PORT"
    )
  return {
    "coordinator_address": address,
    "num_processes": count,
    "process_id": process,
  }


def _integer(environment, *names):
  """Return the first of these variables that is set."""
  for name in names:
    if environment.get(name):
      try:
        return int(environment[name])
      except ValueError as error:
        raise errors.UserError(
          f"{name}={environment[name]}: must be an integer"
        ) from error
  return None


def _finds_coordinator(environment):
  """Say whether JAX finds the address of process 0 itself."""
  return (
    "SLURM_STEP_NODELIST" in environment
    or "OMPI_MCA_orte_hnp_uri" in environment
    or _is_pod(environment)
  )


def _is_pod(environment):
  return (
    len(environment.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
    or "MEGASCALE_COORDINATOR_ADDRESS" in environment
  )


@contextlib.contextmanager
def _ending_after(seconds, arguments):
  """End the process with one line where the work inside takes longer."""

  def end():
    address = arguments.get("coordinator_address", "the coordinator")
    print(
      f"error: not all of {arguments.get('num_processes', 'the')} processes "
      f"were at {address} within {seconds} s (--join_seconds); this is process "
      f"{arguments.get('process_id', '?')}: see whether the others run and "
      "reach that address",
      file=sys.stderr,
      flush=True,
    )
    os._exit(1)

  timer = threading.Timer(seconds, end)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


@contextlib.contextmanager
def naming_memory(*fields):
  """Say which fields to lower when the devices' memory does not suffice.

  Args:
    *fields: such as "train.batch_size=256".

  Raises:
    errors.RunError: it did not.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if _OUT_OF_MEMORY not in str(error):
      raise
    raise errors.RunError(
      f"out of memory on the devices: lower {' or '.join(fields)} "
      f"({errors.first_line(error)})"
    ) from error


def is_lead():
  """Say whether this is the process that writes logs and results."""
  return jax.process_index() == 0


def barrier(name):
  """Wait until every process has come here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def agree(value):
  """Return the first process's integer or bool in all processes."""
  if jax.process_count() == 1:
    return value
  return type(value)(multihost_utils.broadcast_one_to_all(np.int32(value)))


def by_lead(work):
  """Return what the first process makes of work(), in all processes.

  For work on results that one process does for all, on its own devices. Where
  it fails there, the others do not wait for it but raise the same error.

  Args:
    work: function without arguments whose value JSON can hold. No other process
      takes part in it, so it must not wait for one.

  Returns:
    The value.

  Raises:
    errors.UserError, errors.RunError: as work() did.
    RuntimeError: work() raised another error, as the first process itself does.
  """
  if jax.process_count() == 1:
    return work()
  told = {}
  if is_lead():
    try:
      told = {"value": work()}
    except Exception as error:
      _tell({"error": type(error).__name__, "message": str(error)})
      raise
  told = _tell(told)
  if "error" not in told:
    return told["value"]
  kind = getattr(errors, told["error"], None)
  if kind is None:
    raise RuntimeError(f"process 0: {told['error']}: {told['message']}")
  raise kind(told["message"])


def _tell(value):
  """Return the first process's value, which JSON can hold, in all processes."""
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  length = agree(len(data))
  buffer = np.zeros(-(-length // _MESSAGE_BYTES) * _MESSAGE_BYTES, np.uint8)
  if is_lead():
    buffer[:length] = data
  buffer = multihost_utils.broadcast_one_to_all(buffer)
  return json.loads(np.asarray(buffer)[:length].tobytes())


def split(tree, num_devices):
  """Reshape leaves [N, ...] to [num_devices, N / num_devices, ...]."""

  def reshape(array):
    assert array.shape[0] % num_devices == 0, (array.shape, num_devices)
    return array.reshape((num_devices, -1, *array.shape[1:]))

  return jax.tree.map(reshape, tree)


def merge(array):
  """Undo `split` and bring the result to the host."""
  array = np.asarray(array)
  return array.reshape((-1, *array.shape[2:]))


def replicate(tree):
  """Place a host tree on all devices, without a leading device axis."""
  return jax.device_put(tree, _everywhere(jax.devices()))


def replicate_locally(tree):
  """Place a host tree on this process's devices alone."""
  return jax.device_put(tree, _everywhere(jax.local_devices()))


def _everywhere(devices):
  mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def pad(array, length):
  """Repeat the last row of array [N, ...] until it has `length` rows."""
  missing = length - array.shape[0]
  assert missing >= 0, (array.shape, length)
  return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
