"""What steps said, over windows, and which of them the devices have done."""

import numpy as np
import pytest

from cfgd.training import progress


def metrics_of(loss, skipped=0, right=1.0):
  """Return a step's metrics on the host; a NaN loss is a skipped step."""
  return {
    "loss": np.float32(loss),
    "grad_norm": np.float32(2 * loss),
    "finite": np.bool_(np.isfinite(loss)),
    "skipped": np.int32(skipped),
    "measured": {"accuracy": (np.float32(right), np.float32(4))},
  }


def test_means_are_over_the_steps_that_were_taken():
  history = progress.History()
  history.add(metrics_of(1.0))
  history.add(metrics_of(np.nan, skipped=8, right=np.nan))
  history.add(metrics_of(4.0, skipped=8, right=3.0))
  assert history.summarize() == {
    "loss": 2.5,
    "grad_norm": 5.0,
    "skipped_steps": 8,
    "skipped_in_window": 1,
    "accuracy": 0.5,
  }
  history.add(metrics_of(3.0, skipped=8))
  summary = history.summarize()
  assert (summary["loss"], summary["skipped_in_window"]) == (3.0, 0)


def test_a_window_without_any_step_taken_has_no_loss_and_says_why():
  history = progress.History()
  for skipped in (5, 6):
    history.add(metrics_of(np.inf, skipped=skipped))
  assert history.summarize() == {"skipped_steps": 6, "skipped_in_window": 2}


def test_skipped_steps_in_a_row_are_counted_over_windows_and_runs():
  history = progress.History(skipped_in_a_row=2)
  seen = []
  for loss in (np.nan, np.nan, 1.0, np.nan, np.nan, np.nan):
    history.add(metrics_of(loss))
    seen.append(history.skipped_in_a_row)
    if len(seen) % 2 == 0:
      history.summarize()
  assert seen == [3, 4, 0, 1, 2, 3]


class OnDevice:
  """A result that the devices finish when they are told to."""

  def __init__(self, value):
    self.value = value
    self.ready = False

  def is_ready(self):
    return self.ready

  def __array__(self, dtype=None, copy=None):
    self.ready = True  # whoever asks waits until it is
    return np.asarray(self.value, dtype)


@pytest.fixture
def followed():
  """Return (InFlight of depth 2, numbers done, [(number, loss)] recorded)."""
  done, recorded = [], []
  in_flight = progress.InFlight(
    2,
    done=done.append,
    record=lambda number, m: recorded.append((number, float(m["loss"]))),
  )
  return in_flight, done, recorded


def test_a_step_that_was_dispatched_is_not_done(followed):
  in_flight, done, recorded = followed
  results = [OnDevice(10.0 * number) for number in range(5)]
  for number in (0, 1):
    in_flight.add(number, {"loss": results[number]})
  assert (done, recorded) == ([], [])
  assert not results[0].ready  # nobody waited
  in_flight.add(2, {"loss": results[2]})  # one too many: waits for the oldest
  assert (done, recorded) == ([0], [(0, 0.0)])
  assert [result.ready for result in results[:3]] == [True, False, False]
  in_flight.drain()
  assert (done, recorded) == ([0, 1, 2], [(0, 0.0), (1, 10.0), (2, 20.0)])


def test_what_is_ready_is_noticed_at_once_and_recorded_in_its_turn(followed):
  in_flight, done, recorded = followed
  results = [OnDevice(1.0 * number) for number in range(4)]
  in_flight.add(0, {"loss": results[0]})
  results[0].ready = True
  in_flight.add(1, {"loss": results[1]})
  assert (done, recorded) == ([0], [])
  in_flight.add(2, {"loss": results[2]})
  assert (done, recorded) == ([0], [(0, 0.0)])
  results[2].ready = True  # it cannot be done before step 1
  in_flight.add(3, {"loss": results[3]})
  assert (done, recorded) == ([0, 1, 2], [(0, 0.0), (1, 1.0)])
