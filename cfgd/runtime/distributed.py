"""Join processes, exchange values, and place batches and weights on devices."""

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
# JAX's timeout is this much longer than that of `peers`, which reports first.
_LATER = 30
# Messages are padded to a multiple of this, to compile fewer programs.
_MESSAGE_BYTES = 4096


def initialize(*, join_seconds, peer_seconds):
  """Join the other processes, if `cluster` finds any; call once, first.

  Exits with an error after `join_seconds`. A process that is silent for
  `peer_seconds` counts as dead and ends the others.
  """
  arguments = cluster(os.environ)
  if arguments is None:
    return
  with _exit_after(join_seconds, arguments):
    jax.distributed.initialize(
      **arguments,
      # On a timeout JAX dumps its stack: our line comes first.
      initialization_timeout=join_seconds + 60,
      heartbeat_timeout_seconds=peer_seconds + _LATER,
      shutdown_timeout_seconds=peer_seconds,
    )


def cluster(environment):
  """Return the arguments of jax.distributed.initialize, None for one process.

  Looks in this order at JAX_COORDINATOR_ADDRESS (or COORDINATOR_ADDRESS),
  JAX_NUM_PROCESSES and JAX_PROCESS_ID, the last two falling back to Open MPI's
  and SLURM's variables; a SLURM or Open MPI job of several tasks; a TPU pod.
  JAX_NUM_PROCESSES=1 always means one process.
  """
  address = environment.get("JAX_COORDINATOR_ADDRESS") or environment.get(
    "COORDINATOR_ADDRESS"
  )
  in_srun = "SLURM_STEP_NODELIST" in environment  # sbatch sets the others
  in_pod = (
    len(environment.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
    or "MEGASCALE_COORDINATOR_ADDRESS" in environment
  )
  count = _integer(
    environment,
    *("JAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE"),
    *(["SLURM_NTASKS"] if in_srun else []),
  )
  if count == 1:
    return None
  if address:
    return _explicit(environment, address, count)
  if count is None:
    return {} if in_pod else None
  # Whether JAX finds the address of process 0 by itself.
  if in_srun or in_pod or "OMPI_MCA_orte_hnp_uri" in environment:
    return {}
  raise errors.UserError(
    f"{count} processes and no JAX_COORDINATOR_ADDRESS: set it to HOST:PORT "
    "of process 0 in all of them, or JAX_NUM_PROCESSES=1"
  )


def _explicit(environment, address, count):
  process = _integer(
    environment, "JAX_PROCESS_ID", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"
  )
  required = {"JAX_NUM_PROCESSES": count, "JAX_PROCESS_ID": process}
  for name, value in required.items():
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
  """Return the first of these variables that is set, None if none is."""
  for name in names:
    if environment.get(name):
      try:
        return int(environment[name])
      except ValueError as error:
        raise errors.UserError(
          f"{name}={environment[name]}: must be an integer"
        ) from error
  return None


@contextlib.contextmanager
def _exit_after(seconds, arguments):
  """Exit with a one-line error if the work inside takes longer."""

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
  """Raise errors.RunError naming fields to lower if device memory runs out."""
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
  """Return whether this is process 0, which writes logs and results."""
  return jax.process_index() == 0


def barrier(name):
  """Wait until every process has reached this point."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def agree(value):
  """Return process 0's integer or bool in all processes."""
  if jax.process_count() == 1:
    return value
  return type(value)(multihost_utils.broadcast_one_to_all(np.int32(value)))


def by_lead(work):
  """Return process 0's work(), a JSON value, in all processes.

  No other process takes part in it, so it must not wait for one. If it fails,
  all raise the same error; the others a RuntimeError unless it is of `errors`.
  """
  if jax.process_count() == 1:
    return work()
  value = in_all(work if is_lead() else lambda: None)
  return _broadcast(value)


def in_all(work):
  """Return work(), done by every process; if it fails in one, it does in all.

  The work must not wait for other processes: one that has failed would not
  come. Where only some have failed, the others raise the first one's error, or
  a RuntimeError unless it is of `errors`.

  Raises:
    Exception: as work() raises, with `in_all` set to True.
  """
  if jax.process_count() == 1:
    return work()
  value, failed = None, None
  try:
    value = work()
  except Exception as error:
    failed = error
  said = [] if failed is None else [type(failed).__name__, str(failed)]
  said = [json.loads(text) for text in _gather(json.dumps(said))]
  for process, entry in enumerate(said):
    if entry:
      failed = failed or _error_of(process, *entry)
      failed.in_all = True
      raise failed
  return value


def _error_of(process, kind, message):
  """Return another process's error."""
  ours = getattr(errors, kind, None)
  if isinstance(ours, type) and issubclass(ours, Exception):
    return ours(message)
  return RuntimeError(f"process {process}: {kind}: {message}")


def _broadcast(value):
  """Return process 0's JSON value in all processes."""
  return json.loads(_gather(json.dumps(value))[0])


def _gather(text):
  """Return the texts of all processes, in order."""
  data = np.frombuffer(text.encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(len(data)))
  padded = -(-max(lengths) // _MESSAGE_BYTES) * _MESSAGE_BYTES
  data = np.pad(data, (0, padded - len(data)))
  rows = np.asarray(multihost_utils.process_allgather(data))
  return [
    row[:length].tobytes().decode()
    for row, length in zip(rows, lengths, strict=True)
  ]


def split(tree, num_devices):
  """Reshape leaves [N, ...] to [num_devices, N / num_devices, ...]."""

  def reshape(array):
    assert array.shape[0] % num_devices == 0, (array.shape, num_devices)
    return array.reshape((num_devices, -1, *array.shape[1:]))

  return jax.tree.map(reshape, tree)


def merge(array):
  """Undo `split` and move the result to the host."""
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
