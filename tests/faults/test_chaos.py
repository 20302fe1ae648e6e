"""The chaos harness in its short form: a training that is killed."""

import os
import random
import signal

import numpy as np

from cfgd.runtime import checkpoint
from cfgd.training import loop
from tests import tiny
from tests.faults import jobs
from tests.faults import outcomes
from tests.faults import stages


def test_a_training_that_is_killed_ends_in_the_same_bits(tmp_path):
  overrides = stages.TINY | {"train.steps": 30, "train.checkpoint_every": 3}
  config = tiny.make_config(overrides)
  killed, straight = tmp_path / "killed", tmp_path / "straight"
  env = {"XLA_FLAGS": os.environ["XLA_FLAGS"]}
  job = jobs.Job("train", killed, overrides, env=env)
  assert job.wait_for_step(), job.error
  assert job.kill(signal.SIGKILL, random.uniform(0, 0.3))
  assert job.wait() == -signal.SIGKILL
  assert checkpoint.steps(killed)[-1:] != [30]
  loop.train(config, killed)
  loop.train(config, straight)
  states = [
    outcomes.final_state(path, overrides) for path in (killed, straight)
  ]
  assert outcomes.same(*states)


def test_a_difference_of_one_bit_is_seen(tmp_path):
  one = [np.float32([1.0, 2.0]), np.int32([3])]
  assert outcomes.same(one, [leaf.copy() for leaf in one])
  other = [np.nextafter(one[0], np.float32(9)), one[1]]
  assert not outcomes.same(one, other)
