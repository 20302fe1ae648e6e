"""Claims on cells whose truth is known: curves from formulas, and noise."""

import itertools
import math

import numpy as np
import pytest

from cfgd.sweep import claims
from cfgd.sweep import verdicts

WS = (0.0, 0.1, 0.3, 0.5, 1.0, 2.0, 4.0)
LIMITS = {"main": (0.1, 16), "alike": 1.15, "small_w": 1.0, "copied": 0.1}


def best(p_uncond, T):
  """A frontier in the form of the paper: T and p_uncond scale its distance."""
  return {0.1: 1.0, 0.2: 1.02, 0.5: 1.6}[p_uncond] * (1 + 8 / T**1.5)


def make_cell(seed, p_uncond, T, w, fields=(), factor=1.0, shift=0.0, noise=0):
  rng = np.random.default_rng([seed or 0, T, int(10 * w), int(100 * p_uncond)])
  jitter = math.exp(noise * rng.standard_normal())
  distance = best(p_uncond, T) * (1 + 4 * (math.sqrt(w) - 0.6) ** 2)
  return {
    **{"p_uncond": p_uncond, "T": T, "w": w, "seed": seed},
    "fields": dict(fields),
    "metrics": {
      "fd": distance * factor * jitter,
      "fd_heldout": distance * factor * jitter + 0.1,
      "is": 5 + 4 * math.tanh(w + shift),
      "precision": 0.6 + 0.05 * w,
      "recall": 0.9 - 0.1 * w,
      "copied": 0.01 * (seed or 0),
    },
  }


def make_sweep(seeds=(0, 1, 2), noise=0.01, guided=1.0, cold=3.0):
  cells = []
  for seed in seeds:
    at = {"seed": seed, "noise": noise}
    cells += [make_cell(p_uncond=0.1, T=16, w=w, **at) for w in WS]
    cells += [
      make_cell(p_uncond=p, T=16, w=w, **at)
      for p in (0.2, 0.5)
      for w in WS[::2]
    ]
    cells += [
      make_cell(p_uncond=0.1, T=T, w=w, **at)
      for T in (8, 32)
      for w in (0.0, 0.3, 1.0)
    ]
    main = at | {"p_uncond": 0.1, "T": 16}
    for w in WS[1:6]:
      fields = {"guidance": "classifier"}
      cells.append(make_cell(w=w, fields=fields, factor=guided, **main))
    for name in ("score_scale", "noise_scale"):
      cells.append(make_cell(w=0.0, fields={name: 0.9}, factor=cold, **main))
    cells.append(make_cell(w=0.3, fields={"v": 1.0}, factor=1.3, **main))
    cells.append(
      make_cell(w=0.3, fields={"threshold": "none"}, factor=0.7, **main)
    )
  return cells


def verdicts_of(cells, **limits):
  tested = claims.test(cells, "fd", "is", **(LIMITS | limits))
  return {claim.text: claim.verdict(0.95) for claim in tested}


def test_a_sweep_like_the_papers_holds_the_papers_claims():
  found = verdicts_of(make_sweep())
  fails = {"threshold = none is worse than the config's, at w = 0.3"}
  assert len(found) == 19
  assert {text for text, v in found.items() if v != verdicts.HOLDS} == fails
  assert found[fails.pop()] == verdicts.FAILS


def test_a_sweep_unlike_the_papers_does_not():
  cells = make_sweep()
  for cell in cells:
    metrics = cell["metrics"]
    metrics["fd"] = metrics["fd_heldout"] = 1.0 + cell["w"]
    metrics["is"], metrics["recall"] = 9 - cell["w"], 0.5
    metrics["copied"] = 0.8
  found = verdicts_of(cells)
  for start, verdict in (
    ("The best distance is at a small w", verdicts.FAILS),
    ("Also by held-out images", verdicts.FAILS),
    ("The score is higher", verdicts.FAILS),
    ("The score rises", verdicts.FAILS),
    ("Recall falls", verdicts.FAILS),
    ("p_uncond = 0.5 is worse than 0.1", verdicts.FAILS),
    ("No training images are copied", verdicts.FAILS),
    ("Precision rises", verdicts.HOLDS),
  ):
    (text,) = (text for text in found if text.startswith(start))
    assert found[text] == verdict, text


def test_too_few_seeds_or_too_much_noise_resolve_nothing():
  assert set(verdicts_of(make_sweep(seeds=(0, 1))).values()) == {verdicts.OPEN}
  assert set(verdicts_of(make_sweep(seeds=(None,))).values()) == {verdicts.OPEN}
  found = verdicts_of(make_sweep(noise=2.0))
  assert found["p_uncond = 0.5 is worse than 0.1 over the frontier"] == (
    verdicts.OPEN
  )


def test_a_value_that_is_not_finite_resolves_nothing():
  cells = make_sweep()
  cells[6]["metrics"]["fd"] = math.nan
  found = verdicts_of(cells)
  assert (
    found["The greatest w is worse in distance than w = 0"] == verdicts.OPEN
  )
  assert found["T = 16 is better than T = 8"] == verdicts.HOLDS


def test_claims_without_their_cells_are_left_out():
  cells = [c for c in make_sweep() if not c["fields"] and c["p_uncond"] == 0.1]
  texts = "".join(verdicts_of(cells))
  for absent in ("p_uncond", "lassifier", "noise", "threshold"):
    assert absent not in texts


def test_a_seed_under_way_is_compared_by_what_all_seeds_have():
  """Its greatest w is not another one, nor is a shorter frontier compared."""
  cells = make_sweep()
  part = [c for c in cells if c["seed"] < 2 or c["w"] <= 1]
  whole, rest = (
    {
      claim.text: claim.values
      for claim in claims.test(some, "fd", "is", **LIMITS)
    }
    for some in ([c for c in cells if c["w"] <= 1], part)
  )
  assert rest == whole


def test_w_below_zero_is_not_taken_for_zero():
  cells = make_sweep()
  below = [make_cell(seed, 0.1, 16, 0.0, factor=99.0) for seed in (0, 1, 2)]
  cells += [cell | {"w": -1.0} for cell in below]
  name = "The greatest w is worse in distance than w = 0"
  assert verdicts_of(cells)[name] == verdicts.HOLDS


def test_the_interval_is_students():
  claim = verdicts.Claim("", "", "", (1.0, 2.0, 4.0), neutral=1.0)
  low, mean, high = claim.interval(0.95)
  # log 2 and a standard deviation of log 2; t(0.975, 2) = 4.302653.
  half = 4.302653 / math.sqrt(3) * math.log(2)
  assert mean == pytest.approx(2)
  assert math.log(high) == pytest.approx(math.log(2) + half, rel=1e-6)
  assert math.log(low) == pytest.approx(math.log(2) - half, rel=1e-6)
  claim = verdicts.Claim("", "", "", (0.1, 0.2, 0.3), neutral=0.0)
  half = 4.302653 / math.sqrt(3) * 0.1
  assert claim.interval(0.95) == pytest.approx((0.2 - half, 0.2, 0.2 + half))


@pytest.mark.parametrize(
  ("values", "verdict"),
  [
    ((1.0, 1.01, 0.99), verdicts.HOLDS),
    ((1.5, 1.51, 1.49), verdicts.FAILS),
    ((0.5, 0.51, 0.49), verdicts.FAILS),
    ((0.8, 1.0, 1.25), verdicts.OPEN),
  ],
)
def test_alike_is_both_ends_within_the_limit(values, verdict):
  claim = verdicts.Claim("", "", "", values, neutral=1.0, alike=1.15)
  assert claim.verdict(0.95) == verdict


def test_the_place_of_the_lowest_is_chosen_by_the_others():
  curves = [{0.1: 1.0, 0.3: 5.0}, {0.1: 2.0, 0.3: 1.0}, {0.1: 4.0, 0.3: 0.1}]
  # The others' means: (3, 0.55), (2.5, 2.55), (1.5, 3).
  assert verdicts.chosen_elsewhere(curves) == [5.0, 2.0, 4.0]
  assert verdicts.chosen_elsewhere(curves[:1]) == [1.0]


def test_curves_are_compared_at_equal_scores():
  scores = np.linspace(1, 3, 5)
  one = np.stack([scores, np.exp(scores)], axis=1)
  other = np.stack([scores + 0.3, np.exp(scores + 0.3) / 2], axis=1)
  # Log distance is linear in score, so that interpolation is exact.
  assert verdicts.frontier_ratio(one, other) == pytest.approx(2, rel=1e-12)
  assert verdicts.frontier_ratio(other, one) == pytest.approx(0.5, rel=1e-12)
  # By hand: over the scores 1 to 2 the log ratio falls from log 4 to 0.
  short = np.array([[1.0, 4.0], [2.0, 1.0]])
  flat = np.array([[0.0, 1.0], [5.0, 1.0]])
  assert verdicts.frontier_ratio(short, flat) == pytest.approx(2, rel=1e-12)
  apart = other + np.array([5, 0])
  assert math.isnan(verdicts.frontier_ratio(one, apart))
  touching = one + np.array([2, 0])
  assert math.isnan(verdicts.frontier_ratio(one, touching))
  assert math.isnan(verdicts.frontier_ratio(one[:1], other))
  assert math.isnan(verdicts.frontier_ratio(one * [1, math.nan], other))


@pytest.mark.parametrize("turns", [False, True])
def test_a_curve_is_that_of_any_part_of_it(turns):
  """Also where the distance is lowest in the middle, or the score turns."""
  rng = np.random.default_rng(0)
  compared = 0
  for _ in range(50):
    scores = rng.uniform(5, 9, 7)
    scores = scores if turns else np.sort(scores)
    curve = np.stack([scores, np.exp(rng.normal(size=7))], axis=1)
    for start, stop in itertools.combinations(range(8), 2):
      ratio = verdicts.frontier_ratio(curve, curve[start:stop])
      assert ratio == 1 or math.isnan(ratio)
      assert turns or math.isnan(ratio) == (stop - start < 2)
      compared += ratio == 1
  assert compared > 200


def test_scores_that_a_curve_passes_several_times_are_left_out():
  """Up to 3, back to 2, on to 4: there is one distance below 2 and above 3."""
  turning = np.array([[1.0, 2.0], [3.0, 2.0], [2.0, 77.0], [4.0, 2.0]])
  level = np.array([[0.0, 1.0], [5.0, 1.0]])
  # From 3 to 4 the log distance falls on a line from log 77 at 2: the mean of
  # that half is a quarter of the way down. From 1 to 2 it is log 2.
  half = math.log(2) + 0.25 * math.log(77 / 2)
  expected = math.exp((math.log(2) + half) / 2)
  ratio = verdicts.frontier_ratio(turning, level)
  assert ratio == pytest.approx(expected, rel=1e-12)
