"""The chaos harness in its short form: a training that is killed."""

import random

import numpy as np

from benchmarks import chaos


def test_a_training_that_is_killed_ends_in_the_same_bits(tmp_path):
  overrides = chaos.TINY | {"train.steps": 40}
  tally = chaos.Tally()
  place = tmp_path / "undisturbed"
  reference = chaos.undisturbed(place, overrides, tally)
  rng = random.Random(0)
  chaos.kill_training(tmp_path, overrides, reference, 1, rng, tally)
  report = tally.report()
  assert (report["kills"], report["runs"]) == (1, 1)
  assert not report["surprises"]
  assert not report["divergences"]
  assert report["median_seconds_to_first_resumed_step"] > 0


def test_a_difference_of_one_bit_is_seen(tmp_path):
  one = [np.float32([1.0, 2.0]), np.int32([3])]
  assert chaos.same(one, [leaf.copy() for leaf in one])
  other = [np.nextafter(one[0], np.float32(9)), one[1]]
  assert not chaos.same(one, other)
