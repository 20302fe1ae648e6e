"""Processes and devices: who am I, how is a batch split, wait for all."""

import os

import jax
from jax.experimental import multihost_utils
import numpy as np

_CLUSTER_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "COORDINATOR_ADDRESS")


def initialize():
  """Join the other processes if the environment names any; once, first.

  Reads JAX's own variables (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES,
  JAX_PROCESS_ID), a SLURM job of several tasks, or a TPU pod's worker list. On
  a single machine it does nothing.
  """
  slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1
  pod = len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
  named = [name for name in _CLUSTER_VARIABLES if os.environ.get(name)]
  if named:
    jax.distributed.initialize(
      coordinator_address=os.environ[named[0]],
      num_processes=_integer("JAX_NUM_PROCESSES"),
      process_id=_integer("JAX_PROCESS_ID"),
    )
  elif slurm or pod:
    jax.distributed.initialize()


def _integer(name):
  return int(os.environ[name]) if name in os.environ else None


def is_lead():
  """Say whether this is the process that writes logs and results."""
  return jax.process_index() == 0


def barrier(name):
  """Wait until every process has come here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


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
