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
from cfgd.runtime import files

_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
# Messages are padded to a multiple of this, to compile fewer programs.
_MESSAGE_BYTES = 4096
# Where one of these is 1 there is nobody to join.
_COUNTS = ("JAX_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def initialize(*, join_seconds, peer_seconds):
  """Join the other processes, if there are any; call once, first.

  JAX detects SLURM, Open MPI, Kubernetes and TPU pods. Elsewhere three
  variables describe a process: JAX_COORDINATOR_ADDRESS (HOST:PORT of process
  0), JAX_NUM_PROCESSES and JAX_PROCESS_ID; the last two override what JAX
  detects, and JAX_NUM_PROCESSES=1 means one process anywhere.

  Exits with an error after `join_seconds`. JAX aborts the others if a process
  is silent for `peer_seconds`.
  """
  address = os.environ.get("JAX_COORDINATOR_ADDRESS")
  count, process = map(_integer, ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
  expected = next(filter(None, map(os.environ.get, _COUNTS)), None)
  if expected == "1":
    return
  try:
    with _exit_after(join_seconds, address, count, process):
      jax.distributed.initialize(
        num_processes=count,
        process_id=process,
        # On a timeout JAX dumps its stack: our line comes first.
        initialization_timeout=join_seconds + 60,
        heartbeat_timeout_seconds=peer_seconds,
        shutdown_timeout_seconds=peer_seconds,
      )
  except (ValueError, IndexError) as error:
    if address is None and expected is None:
      return  # nothing found
    raise errors.UserError(
      f"{expected or 'several'} processes, JAX_COORDINATOR_ADDRESS={address}, "
      f"JAX_NUM_PROCESSES={count}, JAX_PROCESS_ID={process}: set all three: "
      "HOST:PORT of process 0, the number of processes, and this one's from 0 "
      f"on ({error})"
    ) from error


def _integer(name):
  """Return a variable of the environment, None if it is not set."""
  value = os.environ.get(name)
  try:
    return int(value) if value else None
  except ValueError as error:
    raise errors.UserError(f"{name}={value}: must be an integer") from error


@contextlib.contextmanager
def _exit_after(seconds, address, count, process):
  """Exit with a one-line error if the work inside takes longer."""

  def end():
    print(
      f"error: not all of {count or 'the'} processes were at "
      f"{address or 'the coordinator'} within {seconds} s (--join_seconds); "
      f"this is process {'?' if process is None else process}: see whether the "
      "others run and reach that address",
      file=sys.stderr,
      flush=True,
    )
    os._exit(errors.EXIT_AGAIN)  # a machine may still be starting

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


def broadcast(tree, like):
  """Return process 0's tree of arrays in all processes, to the last bit.

  Args:
    tree: process 0's; ignored elsewhere.
    like: tree of arrays or shapes and dtypes, alike in all processes.
  """
  if jax.process_count() == 1:
    return tree

  def each(shape, *array):
    dtype = np.dtype(shape.dtype)
    given = array[0] if array else np.zeros(shape.shape, dtype)
    # Sums of bytes are exact, where floating-point ones lose the sign of -0.
    data = np.frombuffer(np.asarray(given).tobytes(), np.uint8)
    data = np.asarray(multihost_utils.broadcast_one_to_all(data))
    return np.frombuffer(data.tobytes(), dtype).reshape(shape.shape)

  return jax.tree.map(each, like, *([tree] if is_lead() else []))


def agree(value):
  """Return process 0's JSON value in all processes."""
  return value if jax.process_count() == 1 else _broadcast(value)


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
  said = []
  if failed is not None:
    kind = errors.Outage if files.is_outage(failed) else type(failed)
    said = [kind.__name__, str(failed)]
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
